export { createClient } from './index.js'
