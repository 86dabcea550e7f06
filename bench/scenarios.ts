import { big } from './scenarios/big.js'
import { buses } from './scenarios/buses.js'
import { crowd } from './scenarios/crowd.js'
import { depth } from './scenarios/depth.js'
import { one } from './scenarios/one.js'
import type { Group } from './scenarios/scenario.js'
import { two } from './scenarios/two.js'

export const groups: Group[] = [one, two, crowd, depth, big, buses]
