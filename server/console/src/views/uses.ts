/** What is known of each path with each head on each task while the server runs: the picture and the table show this. */

import type { Head, LiveStudent, OnlineQuality, OnlineTask, Standing, StudentFacts, Task } from '../wire'
import { TASKS } from '../wire'

/** `compute` is an answer token's, over the full path's; `share` is of the task's requests since the start. `online`
 * null: nothing was scored. */
export interface Use {
  task: Task
  path: string
  head: Head
  compute: number | null
  share: number
  online: OnlineTask | null
  standing: Standing
}

/** By task, cheapest first: what was scored, taken out or asked for. */
export function usesOf(student: LiveStudent, facts: StudentFacts | undefined, quality: OnlineQuality): Use[] {
  const scored = quality.tasks.filter((one) => one.student === student.name)
  const totals = new Map<string, number>()
  for (const one of student.routed) totals.set(one.task, (totals.get(one.task) ?? 0) + one.num_requests)
  const keys = new Map([...scored, ...student.routed].map((one) => [`${one.task} ${one.path} ${one.head}`, one] as const))
  const uses = [...keys.values()].map(({ task, path, head }): Use => {
    const isHere = (one: { task: string; path: string; head: Head }) =>
      one.task === task && one.path === path && one.head === head
    const online = scored.find(isHere) ?? null
    const pin = quality.pins.find((one) => one.student === student.name && one.task === task && one.path === path)
    return {
      task: task as Task,
      path,
      head,
      compute: facts?.paths.find((one) => one.name === path)?.compute_shares[head] ?? null,
      share: (student.routed.find(isHere)?.num_requests ?? 0) / Math.max(1, totals.get(task) ?? 0),
      online,
      standing: online ?? pin ?? { is_open: true, decided_by: null, reason: '' },
    }
  })
  return uses.sort(
    (one, other) => TASKS.indexOf(one.task) - TASKS.indexOf(other.task) || (one.compute ?? 0) - (other.compute ?? 0),
  )
}
