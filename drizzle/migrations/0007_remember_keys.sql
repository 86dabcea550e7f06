-- Whoever removes messages, also by hand, leaves behind the keys that they had (schema.ts, removed_keys). A trigger, because a DELETE that returns its
-- rows takes a third longer, and most have no key. Not what expires: its key is free again.
CREATE FUNCTION "remember_keys"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('message_pickup.keys', true) IS DISTINCT FROM 'forgotten'
		AND EXISTS (SELECT FROM "gone" WHERE "idempotency_key" IS NOT NULL) THEN
		INSERT INTO "removed_keys" ("connection_id", "idempotency_key", "seq", "tag", "payload_hash")
		SELECT "connection_id", "idempotency_key", "seq", "tag", hashtextextended("payload", 0) FROM "gone" WHERE "idempotency_key" IS NOT NULL
		ON CONFLICT ("connection_id", "idempotency_key") DO UPDATE
			SET "seq" = excluded."seq", "tag" = excluded."tag", "payload_hash" = excluded."payload_hash", "removed_at" = excluded."removed_at";
	END IF;
	RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER "remember_keys" AFTER DELETE ON "queued_messages"
	REFERENCING OLD TABLE AS "gone" FOR EACH STATEMENT EXECUTE FUNCTION "remember_keys"();
