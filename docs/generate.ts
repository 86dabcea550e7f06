import { readFileSync, writeFileSync } from 'node:fs'
import { describeConfig } from '../src/config.js'

/** `npm run docs`: writes what README says from the one place that knows it; with --check only compares. */
const file = new URL('../README.md', import.meta.url)
const readme = readFileSync(file, 'utf8')
const fresh = readme.replace(/(<!-- config -->\n)[\s\S]*(<!-- \/config -->)/, `$1${describeConfig('markdown')}\n$2`)
if (process.argv.includes('--check')) {
  if (fresh !== readme) {
    console.error('README.md is stale. Run: npm run docs')
    process.exit(1)
  }
} else {
  writeFileSync(file, fresh)
}
