import type { Text } from '../text'
import type { OnlineTask } from '../wire'

/** Whether enough answers were scored for anything to follow from what a path keeps. */
export function isKnown(one: OnlineTask, least: number): one is OnlineTask & { kept: number } {
  return one.kept !== null && one.num_samples >= least
}

export function figureWords(t: Text, one: OnlineTask, least: number): string {
  return isKnown(one, least) ? t.between(one.kept, one.low, one.high) : t.fewerSamples(least, Math.floor(one.num_samples))
}
