-- Many messages that are added together take the seqs that follow the one they draw (plugins/storage/add-statements.ts).
-- The table first, as every insert locks it: all that is pending is one transaction, and a trigger of 0007 locks the table after the sequence.
LOCK TABLE "queued_messages" IN SHARE ROW EXCLUSIVE MODE;
--> statement-breakpoint
ALTER SEQUENCE "queued_messages_seq_seq" INCREMENT BY 256;
