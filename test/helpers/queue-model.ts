/**
 * The queue as semantics have it, in memory and for one caller at a time: what the store must answer to the same calls. Time stands
 * still but for `hourPasses`, after which every lease and every pause between deliveries is over.
 */

interface Message {
  id: string
  dids: string[]
  bytes: number
  key: string | undefined
  addedAt: number
  deliveries: number
  mark: { epoch: number; isTaken: boolean; isHeld: boolean } | undefined
}

interface Session {
  epoch: number
  sessionId: string
  hasSocket: boolean
  instance: number
  openedAt: number
}

export type Bounds = { limit: number; limitBytes: number }

export function createQueueModel() {
  let moment = 0
  let messages: Message[] = []
  let session: Session | undefined
  /** The newest message that was removed, by its key. */
  const removed = new Map<string, Message>()

  return {
    /** @returns the id that the store must have answered, or undefined when it is a new one */
    idOfKey(key: string, bytes: number): string | undefined {
      const same = removed.get(key)
      return same?.bytes === bytes ? same.id : messages.find((message) => message.key === key)?.id
    },

    /** @returns whether the session with this epoch is given it at once */
    add(id: string, { dids, bytes, key }: Pick<Message, 'dids' | 'bytes' | 'key'>, epoch: number | undefined): boolean {
      const isNext = ({ addedAt, mark }: Message) => addedAt > session!.openedAt && mark?.epoch !== epoch
      const isClaimed = epoch !== undefined && session?.epoch === epoch && !messages.some(isNext)
      const mark = isClaimed ? { epoch, isTaken: false, isHeld: true } : undefined
      messages.push({ id, dids, bytes, key, addedAt: ++moment, deliveries: mark ? 1 : 0, mark })
      return isClaimed
    },

    take({ did, limit, limitBytes, remove }: Bounds & { did: string | undefined; remove: boolean }): string[] {
      const head = messages.filter((message) => isFor(message, did) && !(message.mark?.isTaken && isInFlight(message))).slice(0, limit)
      const isLarge = (message: Message) => message.bytes > limitBytes
      const taken =
        head[0] && isLarge(head[0])
          ? [head[0]]
          : prefix(
              head.filter((message) => !isLarge(message)),
              limitBytes,
            )
      if (remove) removeThose((message) => taken.includes(message))
      else if (session) for (const message of taken) message.mark = { epoch: session.epoch, isTaken: true, isHeld: true }
      return taken.map(({ id }) => id)
    },

    count: (did: string | undefined) => messages.filter((message) => isFor(message, did) && !isInFlight(message)).length,

    depth: () => ({ messages: messages.length, bytes: messages.reduce((sum, { bytes }) => sum + bytes, 0) }),

    remove(ids: readonly string[]): void {
      removeThose(({ id }) => ids.includes(id))
    },

    removeAll(did: string): string[] {
      return removeThose((message) => isFor(message, did)).map(({ id }) => id)
    },

    /** @returns undefined when the session that is there is renewed, else the epoch of the one that was displaced, or null */
    open(sessionId: string, hasSocket: boolean, instance: number): number | null | undefined {
      if (session && session.sessionId === sessionId && !session.hasSocket && !hasSocket) return undefined
      const former = session?.epoch ?? null
      session = { epoch: Number.NaN, sessionId, hasSocket, instance, openedAt: ++moment }
      return former
    },

    /** The epoch is the store's to give. */
    opened(epoch: number): void {
      session!.epoch = epoch
    },

    close(epoch: number | undefined, sessionId: string | undefined): boolean {
      if (!session || (epoch !== undefined && epoch !== session.epoch)) return false
      if (sessionId !== undefined && sessionId !== session.sessionId) return false
      session = undefined
      return true
    },

    current: () => session,

    claim(epoch: number, { limit, limitBytes, alone }: Bounds & { alone: boolean }) {
      if (session?.epoch !== epoch) return { ids: [], more: false, state: session ? 'replaced' : 'ended' }
      const head = deliverable().slice(0, limit + 1)
      let picked = prefix(head.slice(0, limit), limitBytes)
      if (picked.length === 0 && alone) picked = head.slice(0, 1)
      for (const message of picked) {
        message.mark = { epoch, isTaken: false, isHeld: true }
        message.deliveries++
      }
      const ids = picked.map(({ id, deliveries }) => `${id} for the ${deliveries}. time`)
      return { ids, more: head.length > picked.length, state: 'current' }
    },

    isWaiting: (instance: number) => session?.hasSocket === true && session.instance === instance && deliverable().length > 0,

    hourPasses(): void {
      for (const { mark } of messages) if (mark) mark.isHeld = false
    },
  }

  function removeThose(test: (message: Message) => boolean): Message[] {
    const gone = messages.filter(test)
    messages = messages.filter((message) => !test(message))
    for (const message of gone) if (message.key !== undefined) removed.set(message.key, message)
    return gone
  }

  function isFor({ dids }: Message, did: string | undefined): boolean {
    return did === undefined || dids.includes(did)
  }

  function isInFlight({ mark }: Message): boolean {
    return mark !== undefined && mark.isHeld && mark.epoch === session?.epoch
  }

  /** What arrived during the session, is not in flight in it, and was not delivered in vain too often. */
  function deliverable(): Message[] {
    return messages.filter((message) => message.addedAt > session!.openedAt && message.deliveries < 5 && !isInFlight(message))
  }

  /** As many from the start as fit. */
  function prefix(list: Message[], limitBytes: number): Message[] {
    let bytes = 0
    return list.filter((message) => (bytes += message.bytes) <= limitBytes)
  }
}

export type QueueModel = ReturnType<typeof createQueueModel>
