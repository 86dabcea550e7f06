CREATE TABLE "push_outbox" (
	"token_hash" text PRIMARY KEY NOT NULL,
	"type" text NOT NULL,
	"project" text NOT NULL,
	"token" text NOT NULL,
	"state" text NOT NULL,
	"next_at" timestamp with time zone NOT NULL,
	"owed_since" timestamp with time zone NOT NULL,
	"attempts" smallint DEFAULT 0 NOT NULL,
	"claim" bigint,
	"again_at" timestamp with time zone,
	"window_until" timestamp with time zone,
	"sent_connection_id" text,
	"sent_seq" bigint,
	"reason" text
);
--> statement-breakpoint
CREATE TABLE "push_reasons" (
	"token_hash" text NOT NULL,
	"connection_id" text NOT NULL,
	"from_seq" bigint NOT NULL,
	"reminds" boolean NOT NULL,
	"despite_live" boolean NOT NULL,
	"not_before" timestamp with time zone NOT NULL,
	"claim" bigint,
	"to_seq" bigint,
	CONSTRAINT "push_reasons_token_hash_connection_id_pk" PRIMARY KEY("token_hash","connection_id")
);
--> statement-breakpoint
CREATE TABLE "push_tokens" (
	"connection_id" text PRIMARY KEY NOT NULL,
	"token_hash" text NOT NULL,
	"type" text NOT NULL,
	"project" text NOT NULL,
	"token" text,
	"ending" text NOT NULL,
	"registered" boolean NOT NULL,
	"reminded_seq" bigint DEFAULT 0 NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "missed_at" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "live_sessions" ADD COLUMN "missed" boolean DEFAULT false NOT NULL;--> statement-breakpoint
CREATE INDEX "push_outbox_due" ON "push_outbox" USING btree ("next_at") WHERE "push_outbox"."state" in ('owed', 'sending');--> statement-breakpoint
CREATE INDEX "push_outbox_over" ON "push_outbox" USING btree ("next_at") WHERE "push_outbox"."state" in ('resting', 'dead');--> statement-breakpoint
CREATE INDEX "push_tokens_token_hash" ON "push_tokens" USING btree ("token_hash");