import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import type { PubSub } from '../../src/ports.js'

/**
 * The contract of the port PubSub: two instances on one bus (for the in-process bus both are the same one). Every backend
 * runs it.
 */
export async function pubsubContract(t: Test, [a, b]: [PubSub, PubSub]): Promise<void> {
  const newId = () => randomUUID()
  /** Subscribes and says when a hint came. */
  const listen = async (pubsub: PubSub, connectionId: string) => {
    let hints = 0
    let wake: (() => void) | undefined
    const unsubscribe = await pubsub.subscribe(connectionId, () => {
      hints++
      wake?.()
    })
    return {
      unsubscribe,
      hints: () => hints,
      hint: () => (hints > 0 ? Promise.resolve() : new Promise<void>((resolve) => (wake = resolve))),
    }
  }
  /** Everything published before this has arrived, where it was going to arrive. */
  const settled = async (from: PubSub, at: PubSub) => {
    const marker = newId()
    const last = await listen(at, marker)
    from.publish(marker)
    await last.hint()
    await last.unsubscribe()
  }

  t.test('both instances are up', async (t) => {
    while (!a.isUp() || !b.isUp()) await new Promise((resolve) => setTimeout(resolve, 10))
    t.pass()
  })

  t.test('a hint published after subscribe resolved reaches the subscriber on the other instance', async (t) => {
    for (let i = 0; i < 50; i++) {
      const connectionId = newId()
      const heard = await listen(b, connectionId)
      a.publish(connectionId)
      await heard.hint()
      await heard.unsubscribe()
    }
    t.pass()
  })

  t.test('and the one on the same instance', async (t) => {
    const connectionId = newId()
    const heard = await listen(a, connectionId)
    a.publish(connectionId)
    await heard.hint()
    t.pass()
    await heard.unsubscribe()
  })

  t.test('only subscribers of that connection get it', async (t) => {
    const [mine, other] = [await listen(b, newId()), await listen(b, newId())]
    const connectionId = newId()
    const heard = await listen(b, connectionId)
    a.publish(connectionId)
    await heard.hint()
    await settled(a, b)
    t.equal(mine.hints() + other.hints(), 0)
    for (const each of [mine, other, heard]) await each.unsubscribe()
  })

  t.test('after unsubscribe nothing comes any more', async (t) => {
    const connectionId = newId()
    const heard = await listen(b, connectionId)
    await heard.unsubscribe()
    const before = heard.hints()
    a.publish(connectionId)
    await settled(a, b)
    t.equal(heard.hints(), before)
  })

  t.test('two subscribers of one connection on one instance: each has its own life', async (t) => {
    const connectionId = newId()
    const [first, second] = [await listen(b, connectionId), await listen(b, connectionId)]
    await first.unsubscribe()
    await first.unsubscribe()
    const before = first.hints()
    a.publish(connectionId)
    await second.hint()
    t.equal(first.hints(), before)
    await second.unsubscribe()
  })

  t.test('unsubscribing and subscribing again at once leaves it subscribed', async (t) => {
    const connectionId = newId()
    for (let i = 0; i < 20; i++) {
      const former = await listen(b, connectionId)
      const leaving = former.unsubscribe()
      const heard = await listen(b, connectionId)
      await leaving
      a.publish(connectionId)
      await heard.hint()
      await heard.unsubscribe()
    }
    t.pass()
  })

  t.test('concurrent subscribers of one connection can all rely on it', async (t) => {
    const connectionId = newId()
    const listeners = await Promise.all(
      Array.from({ length: 10 }, async () => {
        const heard = await listen(b, connectionId)
        a.publish(connectionId)
        await heard.hint()
        return heard
      }),
    )
    for (const heard of listeners) await heard.unsubscribe()
    t.pass()
  })

  t.test('any connectionId is a good name for a channel', async (t) => {
    for (const connectionId of ['{a}', '}{', '*', 'ü😀', ' ', "'; DROP", 'x'.repeat(255), '!', '?', 'probe:x', '\u0001', 'ﬀ'.repeat(255)]) {
      const heard = await listen(b, connectionId)
      a.publish(connectionId)
      await heard.hint()
      await heard.unsubscribe()
    }
    t.pass()
  })

  t.test('a thousand connections at once', async (t) => {
    const connections = Array.from({ length: 1_000 }, newId)
    const listeners = await Promise.all(connections.map((connectionId) => listen(b, connectionId)))
    for (const connectionId of connections) a.publish(connectionId)
    await Promise.all(listeners.map((heard) => heard.hint()))
    await Promise.all(listeners.map((heard) => heard.unsubscribe()))
    t.pass()
  })
}
