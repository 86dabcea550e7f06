CREATE TABLE "push_outbox" (
	"token_hash" text PRIMARY KEY NOT NULL,
	"type" text NOT NULL,
	"project" text NOT NULL,
	"token" text NOT NULL,
	"state" text NOT NULL,
	"next_at" timestamp with time zone NOT NULL,
	"owed_since" timestamp with time zone NOT NULL,
	"attempts" smallint DEFAULT 0 NOT NULL,
	"connection_id" text NOT NULL,
	"seq" bigint,
	"despite_live" boolean DEFAULT false NOT NULL,
	"owed_again" boolean DEFAULT false NOT NULL,
	"claim" bigint,
	"window_until" timestamp with time zone,
	"sent_connection_id" text,
	"sent_seq" bigint,
	"reason" text
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
CREATE INDEX "push_outbox_due" ON "push_outbox" USING btree ("next_at") WHERE "push_outbox"."state" in ('owed', 'sending');--> statement-breakpoint
CREATE INDEX "push_outbox_over" ON "push_outbox" USING btree ("next_at") WHERE "push_outbox"."state" in ('resting', 'dead');--> statement-breakpoint
CREATE INDEX "push_tokens_token_hash" ON "push_tokens" USING btree ("token_hash");