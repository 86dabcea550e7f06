import { existsSync } from 'node:fs'
import { chromium, type Locator, type Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { DID, newConnectionId, startService } from './helpers/service.js'

const executablePath = process.env.CHROMIUM_PATH || '/usr/bin/chromium'
const isSkipped = (process.env.SKIP_TESTS ?? '').split(',').some((name) => name.trim() === 'browser')
const ARGS =
  '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'

/** The page that a person finds under the address of the service, and all that the browser had to complain about. */
async function openPage(t: Test): Promise<{ page: Page; complaints: string[]; url: string }> {
  if (!existsSync(executablePath)) {
    throw new Error(
      `This test needs Chromium and there is none at ${executablePath}. Install it (apt-get install chromium), or point CHROMIUM_PATH to it, or leave the test out by name: SKIP_TESTS=browser npm test`,
    )
  }
  const service = await startService(t)
  const browser = await chromium.launch({ executablePath, args: ARGS.split(' ') })
  t.teardown(() => browser.close())
  const page = await browser.newPage({ viewport: { width: 1280, height: 1600 } })
  page.setDefaultTimeout(20_000)
  const complaints: string[] = []
  page.on('console', (line) => line.type() === 'error' && complaints.push(`console: ${line.text()}`))
  page.on('pageerror', (error) => complaints.push(`exception: ${error.message}`))
  page.on('requestfailed', (request) => complaints.push(`failed: ${request.url()} ${request.failure()?.errorText}`))
  page.on('response', (response) => response.status() >= 400 && complaints.push(`${response.status()}: ${response.url()}`))
  await page.goto(service.url)
  return { page, complaints, url: service.url }
}

/** Unfolds the operation. */
async function unfold(page: Page, operationId: string): Promise<Locator> {
  const block = page.locator(`.opblock[id$="-${operationId}"]`)
  await block.locator('.opblock-summary-control').click()
  return block
}

const connectionInput = (block: Locator) => block.locator('[data-param-name="connectionId"] input')

/** Presses Execute. @returns what the page then shows as the response */
async function execute(block: Locator): Promise<{ status: string; text: string }> {
  await block.locator('button.execute').click()
  const response = block.locator('.live-responses-table tbody')
  return {
    status: await response.locator('.response-col_status').innerText(),
    text: await response.locator('.highlight-code code').first().innerText(),
  }
}

/** As a person does it: unfold, fill in the path and the body, Execute. */
async function call(page: Page, operationId: string, connectionId: string, body: object): Promise<{ status: string; text: string }> {
  const block = await unfold(page, operationId)
  await connectionInput(block).fill(connectionId)
  await block.locator('textarea.body-param__text').fill(JSON.stringify(body))
  return execute(block)
}

// A machine with only Node and npm has no browser; a CI that has none is broken.
const skip =
  (isSkipped && 'SKIP_TESTS contains "browser"; take it out to run this with Chromium') ||
  (!existsSync(executablePath) && !process.env.CI && `no Chromium at ${executablePath}: install one, or point CHROMIUM_PATH to it`)

t.test(
  'a person can add a message and take it on the page that the address of the service leads to',
  { skip, timeout: 90_000 },
  async (t) => {
    const { page, complaints, url } = await openPage(t)
    await page.locator('.opblock').first().waitFor()
    t.ok(page.url().startsWith(`${url}/docs`), page.url())
    t.match(await page.locator('.info .title').innerText(), 'Message Pickup Repository')

    const connectionId = newConnectionId()
    const payload = { ciphertext: `seen on the page ${connectionId}` }
    const added = await call(page, 'addMessage', connectionId, { recipientDids: [DID], payload })
    t.match(added.status, /^200/)
    const id = JSON.parse(added.text) as string
    t.type(id, 'string')

    const taken = await call(page, 'takeFromQueue', connectionId, { limit: 10 })
    t.match(taken.status, /^200/)
    t.match(JSON.parse(taken.text), [{ id, encryptedMessage: payload }])

    await page.screenshot({ path: '/tmp/swagger.png', fullPage: true })
    t.strictSame(complaints, [], 'the browser had nothing to complain about')
  },
)

t.test('all eight operations stand on the page and show an error as it is answered', { skip, timeout: 90_000 }, async (t) => {
  const { page } = await openPage(t)
  await page.locator('.opblock').first().waitFor()
  for (const operationId of [
    'addMessage',
    'takeFromQueue',
    'getAvailableMessageCount',
    'removeMessages',
    'removeAllMessages',
    'getLiveSession',
    'addLiveSession',
    'removeLiveSession',
  ]) {
    t.equal(await page.locator(`.opblock[id$="-${operationId}"]`).count(), 1, operationId)
  }
  const refused = await call(page, 'takeFromQueue', newConnectionId(), { limit: 0 })
  t.match(refused.status, /^400/)
  t.match(JSON.parse(refused.text), { error: { data: { code: 'invalid_params', field: 'limit', limit: 1 } } })
})

t.test('the examples on the page can be executed as they stand', { skip, timeout: 90_000 }, async (t) => {
  const { page } = await openPage(t)
  for (const operationId of [
    'addMessage',
    'takeFromQueue',
    'getAvailableMessageCount',
    'addLiveSession',
    'getLiveSession',
    'removeLiveSession',
  ]) {
    const block = await unfold(page, operationId)
    const input = connectionInput(block)
    t.not(await input.inputValue(), '', `${operationId}: the connectionId is filled in`)
    if ((await input.inputValue()) === '') await input.fill('connection')
    t.match((await execute(block)).status, /^200/, operationId)
  }
})
