CREATE TABLE "removed_keys" (
	"connection_id" text NOT NULL,
	"idempotency_key" text NOT NULL,
	"seq" bigint NOT NULL,
	"tag" integer NOT NULL,
	"payload_hash" bigint NOT NULL,
	"removed_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "removed_keys_connection_id_idempotency_key_pk" PRIMARY KEY("connection_id","idempotency_key")
);
--> statement-breakpoint
CREATE INDEX "removed_keys_removed_at" ON "removed_keys" USING btree ("removed_at");