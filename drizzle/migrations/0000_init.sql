CREATE TABLE "instances" (
	"instance_id" uuid PRIMARY KEY NOT NULL,
	"lease_until" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "live_sessions" (
	"connection_id" text PRIMARY KEY NOT NULL,
	"session_id" text NOT NULL,
	"epoch" bigserial NOT NULL,
	"instance_id" uuid,
	"expires_at" timestamp with time zone,
	"since" "pg_snapshot" DEFAULT pg_current_snapshot() NOT NULL,
	"since_seq" bigint NOT NULL
);
--> statement-breakpoint
CREATE TABLE "queued_messages" (
	"connection_id" text NOT NULL,
	"seq" bigserial NOT NULL,
	"tag" integer NOT NULL,
	"recipient_dids" text[] NOT NULL,
	"payload" text NOT NULL,
	"payload_bytes" integer NOT NULL,
	"received_at" timestamp with time zone,
	"accepted_at" timestamp with time zone DEFAULT now() NOT NULL,
	"accepted_by" "xid8" DEFAULT pg_current_xact_id() NOT NULL,
	"idempotency_key" text,
	"in_flight_epoch" bigint,
	"in_flight_until" timestamp with time zone,
	"in_flight_taken" boolean,
	"deliveries" smallint DEFAULT 0 NOT NULL,
	CONSTRAINT "queued_messages_connection_id_seq_pk" PRIMARY KEY("connection_id","seq")
);
--> statement-breakpoint
CREATE INDEX "live_sessions_instance_id" ON "live_sessions" USING btree ("instance_id");--> statement-breakpoint
CREATE INDEX "live_sessions_expires_at" ON "live_sessions" USING btree ("expires_at") WHERE "live_sessions"."expires_at" is not null;--> statement-breakpoint
CREATE UNIQUE INDEX "queued_messages_idempotency_key" ON "queued_messages" USING btree ("connection_id","idempotency_key") WHERE "queued_messages"."idempotency_key" is not null;--> statement-breakpoint
CREATE INDEX "queued_messages_accepted_at" ON "queued_messages" USING btree ("accepted_at");