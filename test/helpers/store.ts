import type { Added, MessageStore, NewMessage } from '../../src/ports.js'
import { promised } from '../../src/told.js'

export type StoreByPromise = Omit<MessageStore, 'add'> & { add(message: NewMessage): Promise<Added> }

/** For tests, which wait for one call after the other. */
export function byPromise(store: MessageStore): StoreByPromise {
  return { ...store, add: (message) => promised((told) => store.add(message, told)) }
}

/** And back, for what is to stand in for a store. */
export function byTold(add: StoreByPromise['add']): MessageStore['add'] {
  return (message, told) => void add(message).then(told, told)
}
