import { DEFAULT_PAGE, type AdministrationName, type AdministrationParams, type AdministrationResult } from './administration.js'
import type { LiveSessions } from './live-sessions.js'
import type { Caller } from './pickup.js'
import type { Administration, Clock, Log, PushOutbox, Selection } from './ports.js'

/** After this a purge stops and says that there is more: it is answered before its caller is told "timeout". */
const PURGE_MS = 3_000

/** One method for each row of administration.ts: a row without a handler does not compile. */
export type Administrator = {
  [Name in AdministrationName]: (params: AdministrationParams<Name>, caller: Caller) => Promise<AdministrationResult<Name>>
}

export interface AdministratorOptions {
  administration: Administration
  outbox: Pick<PushOutbox, 'getToken'>
  liveSessions: Pick<LiveSessions, 'remove' | 'removed'>
  log: Log
  now: Clock
}

/** What an operator can do. Whatever changes something leaves one line in the log: who, where, how much. */
export function createAdministrator({ administration, outbox, liveSessions, log, now }: AdministratorOptions): Administrator {
  return {
    async listConnections({ by = 'depth', limit = DEFAULT_PAGE, cursor }) {
      const { items: connections, next } = await administration.connections({ by, limit, cursor })
      return { connections, next }
    },

    async inspectConnection({ connectionId }) {
      const summary = await administration.summary(connectionId)
      const liveSession = await administration.liveSession(connectionId)
      return { connectionId, ...summary, liveSession, pushToken: await outbox.getToken(connectionId) }
    },

    async listMessages({ connectionId, limit = DEFAULT_PAGE, cursor }) {
      const { items: messages, next } = await administration.messages({ connectionId, limit, cursor })
      return { messages, next }
    },

    async listParkedMessages({ limit = DEFAULT_PAGE, cursor }) {
      const { items: messages, next } = await administration.parked({ limit, cursor })
      return { messages, next }
    },

    async purgeMessages({ connectionId, olderThanSeconds, messageIds: ids, dryRun = true }, { client: by }) {
      const done = { messages: 0, bytes: 0, dryRun, more: false }
      const facts = { by, connectionId, olderThanSeconds, messageIds: ids?.length }
      try {
        if (dryRun) Object.assign(done, await measured({ connectionId, olderThanSeconds, ids }))
        else await purge({ connectionId, olderThanSeconds, ids }, done)
      } catch (err) {
        log.warn({ ...facts, ...done, err }, 'a purge failed, after this much of it')
        throw err
      }
      if (dryRun) log.info({ ...facts, ...done }, 'messages were counted for a purge, none was destroyed')
      else log.warn({ ...facts, ...done }, 'messages were purged')
      return done
    },

    async endLiveSession({ connectionId, sessionId }, { client: by }) {
      const ended = await liveSessions.remove(connectionId, sessionId, undefined)
      log.info({ by, connectionId, ended }, 'the administration ended a live session')
      return ended
    },
  }

  async function measured(selection: Selection): Promise<{ messages: number; bytes: number }> {
    const { messages, bytes } = await administration.measure(selection)
    return { messages, bytes }
  }

  /** What was there when it began, and not what arrives meanwhile: otherwise a busy queue would be purged for ever. */
  async function purge(selection: Selection, done: { messages: number; bytes: number; more: boolean }): Promise<void> {
    const deadline = now() + PURGE_MS
    const { upTo } = await administration.measure(selection)
    if (upTo === undefined) return
    for (;;) {
      const { ids, bytes } = await administration.purge({ ...selection, upTo })
      if (ids.length === 0) return
      liveSessions.removed(selection.connectionId, ids)
      done.messages += ids.length
      done.bytes += bytes
      if (now() > deadline) {
        done.more = true
        return
      }
    }
  }
}
