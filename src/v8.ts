import { setFlagsFromString } from 'node:v8'

/*
 * What V8 is told before the service starts. All of it measured, docs/decisions/0008.
 *
 *   no-allocation-site-pretenuring   while a burst waits for the database all its messages survive; V8 concludes that such live long, and
 *                                    from then on puts each one into the old generation at once
 *   heap-growing-percent             it would let that grow fourfold between two full collections
 *   no-parallel-scavenge             a young collection has 1 to 2 MB to copy; four helpers look for work longer than one thread takes
 */
const FLAGS = ['--no-allocation-site-pretenuring', '--heap-growing-percent=100', '--no-parallel-scavenge']

/** After all modules are loaded. */
export function tuneV8(): void {
  FLAGS.forEach(setFlagsFromString)
  mendStringPrototype()
}

/**
 * ioredis declares a `class VerbatimString extends String`. Thereby V8 makes String.prototype a dictionary, and all code that it compiles
 * from then on looks up each method of a string by name, at each call. Storing to an object that inherits from it makes it fast again.
 */
function mendStringPrototype(): void {
  const heir = Object.create(String.prototype) as { stored: boolean }
  heir.stored = true
}
