import t from 'tap'
import { createArrivalOrder } from '../src/arrival-order.js'

/** Promises, for tasks that have one. */
function arrivalOrder() {
  const order = createArrivalOrder()
  return {
    run: <T>(key: string, overlaps: string | undefined, task: () => Promise<T>) =>
      new Promise<T>((resolve, reject) => {
        order.run(key, overlaps, {
          begin(place) {
            const running = task()
            const leave = () => place.leave()
            running.then(leave, leave)
            running.then(resolve, reject)
          },
        })
      }),
  }
}

/** Tasks that end when the test says so. `began` has their names in the order in which they began. */
function tasks() {
  const began: string[] = []
  const ends = new Map<string, () => void>()
  return {
    began,
    task:
      (name: string, fails = false) =>
      () => {
        began.push(name)
        return new Promise<string>((resolve, reject) => ends.set(name, () => (fails ? reject(new Error(name)) : resolve(name))))
      },
    async end(...names: string[]) {
      for (const name of names) ends.get(name)!()
      await new Promise((resolve) => setImmediate(resolve))
    },
  }
}

t.test('calls for one key run one after the other, those for others beside them', async (t) => {
  const { run } = arrivalOrder()
  const { began, task, end } = tasks()
  const results = [run('x', undefined, task('x1')), run('x', undefined, task('x2')), run('y', undefined, task('y1'))]
  t.same(began, ['x1', 'y1'])
  await end('x1')
  t.same(began, ['x1', 'y1', 'x2'])
  await end('x2', 'y1')
  t.same(await Promise.all(results), ['x1', 'x2', 'y1'])
})

t.test('neighbours with the same mark run together; nobody overtakes one that waits', async (t) => {
  const { run } = arrivalOrder()
  const { began, task, end } = tasks()
  for (const name of ['add1', 'add2', 'remove', 'add3', 'add4', 'count']) {
    void run('x', name.startsWith('add') ? 'add' : undefined, task(name))
  }
  t.same(began, ['add1', 'add2'])
  await end('add2')
  void run('x', 'add', task('add5'))
  t.same(began, ['add1', 'add2'], 'a late neighbour waits behind what came before it')
  await end('add1')
  t.same(began.slice(2), ['remove'])
  await end('remove')
  t.same(began.slice(3), ['add3', 'add4'])
  await end('add3', 'add4')
  t.same(began.slice(5), ['count'])
  await end('count')
  t.same(began.slice(6), ['add5'])
  await end('add5')
  void run('x', 'add', task('add6'))
  t.equal(began.at(-1), 'add6', 'and then the line is empty')
})

t.test('a call that comes the moment the one before it ends stays behind those that wait', async (t) => {
  const { run } = arrivalOrder()
  const { began, task, end } = tasks()
  const first = run('x', undefined, task('first'))
  void run('x', 'add', task('add1'))
  void first.then(() => run('x', 'add', task('add2')))
  await end('first')
  t.same(began, ['first', 'add1', 'add2'])
})

t.test('a call that fails does not keep the next from running', async (t) => {
  const { run } = arrivalOrder()
  const { began, task, end } = tasks()
  const first = run('x', undefined, task('first', true))
  void run('x', undefined, task('second'))
  void end('first')
  await t.rejects(first, { message: 'first' })
  t.same(began, ['first', 'second'])
})

t.test('calls for one key keep their order while thousands of others come and go', async (t) => {
  const { run } = arrivalOrder()
  const { began, task, end } = tasks()
  const first = run('x', undefined, task('x1'))
  const second = run('x', undefined, task('x2'))
  for (let i = 0; i < 5_000; i++) await run(`other ${i}`, undefined, async () => {})
  const third = run('x', undefined, task('x3'))
  t.same(began, ['x1'])
  await end('x1')
  await end('x2')
  t.same(began, ['x1', 'x2', 'x3'])
  await end('x3')
  t.same(await Promise.all([first, second, third]), ['x1', 'x2', 'x3'])
})
