-- Many messages that are added together take the seqs that follow the one they draw (plugins/storage/add-statements.ts).
ALTER SEQUENCE "queued_messages_seq_seq" INCREMENT BY 256;
