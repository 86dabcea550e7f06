-- Whoever removes messages, also by hand, leaves behind how many of a tally they were. A trigger, because its queries have a newer
-- snapshot than the statement that fires it, and see a tally that was begun meanwhile.
CREATE FUNCTION "tally_removals"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM "queue_tallies") THEN
		INSERT INTO "tallied_removals" ("tally_id", "messages", "bytes")
		SELECT t."id", count(*), sum(g."payload_bytes") FROM "gone" g
		JOIN "queue_tallies" t ON t."connection_id" = g."connection_id" AND g."seq" <= t."up_to_seq"
		GROUP BY t."id";
	END IF;
	RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER "tally_removals" AFTER DELETE ON "queued_messages"
	REFERENCING OLD TABLE AS "gone" FOR EACH STATEMENT EXECUTE FUNCTION "tally_removals"();
