CREATE TABLE "queue_tallies" (
	"connection_id" text NOT NULL,
	"id" bigserial NOT NULL,
	"up_to_seq" bigint NOT NULL,
	"messages" bigint,
	"bytes" bigint,
	"begun_at" timestamp with time zone DEFAULT now() NOT NULL,
	"counted_at" timestamp with time zone,
	CONSTRAINT "queue_tallies_connection_id_id_pk" PRIMARY KEY("connection_id","id")
);
--> statement-breakpoint
CREATE TABLE "tallied_removals" (
	"tally_id" bigint NOT NULL,
	"messages" bigint NOT NULL,
	"bytes" bigint NOT NULL
);
--> statement-breakpoint
CREATE INDEX "tallied_removals_tally_id" ON "tallied_removals" USING btree ("tally_id");