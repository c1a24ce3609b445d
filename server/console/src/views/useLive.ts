import { useEffect, useRef, useState } from 'preact/hooks'
import { ApiError, getJson, isAbort } from '../api'
import type { Live, LiveStudent } from '../wire'

const POLL_MS = 1000
const KEPT = 120

/** What happened between two states, per second. */
export interface Sample {
  atS: number
  answerTokensPerS: number
  promptTokensPerS: number
  stepsPerS: number
  numRunning: number
  numWaiting: number
  kvShare: number
}

export interface Watched {
  live: Live | null
  samples: Sample[]
  stageShares: Record<string, Record<string, number>>
  error: ApiError | null
}

/** Asks the server once a second while the page is seen, and keeps two minutes of what it said. */
export function useLive(): Watched {
  const [watched, setWatched] = useState<Watched>({ live: null, samples: [], stageShares: {}, error: null })
  const before = useRef<Live | null>(null)
  useEffect(() => {
    const control = new AbortController()
    let timer: ReturnType<typeof setTimeout>
    const poll = async () => {
      if (!document.hidden) await read(control.signal)
      if (!control.signal.aborted) timer = setTimeout(poll, POLL_MS)
    }
    const read = async (signal: AbortSignal) => {
      try {
        const live = await getJson<Live>('/console/state', { signal })
        const last = before.current
        before.current = live
        setWatched((old) => ({
          live,
          samples: last === null ? old.samples : [...old.samples, sampleOf(last, live)].slice(-KEPT),
          stageShares: last === null ? old.stageShares : { ...old.stageShares, ...sharesOf(last, live) },
          error: null,
        }))
      } catch (error) {
        if (isAbort(error)) return
        const known = error instanceof ApiError ? error : new ApiError('failed', String(error))
        setWatched((old) => ({ ...old, error: known }))
      }
    }
    poll()
    return () => {
      control.abort()
      clearTimeout(timer)
    }
  }, [])
  return watched
}

function sampleOf(before: Live, now: Live): Sample {
  const seconds = Math.max(0.05, now.at_s - before.at_s)
  const sum = (live: Live, of: (student: LiveStudent) => number) =>
    live.students.reduce((total, student) => total + of(student), 0)
  const rate = (of: (student: LiveStudent) => number) => Math.max(0, (sum(now, of) - sum(before, of)) / seconds)
  const capacity = sum(now, (one) => one.engine.kv.capacity_bytes)
  return {
    atS: now.at_s,
    answerTokensPerS: rate((one) => one.engine.num_generation_tokens),
    promptTokensPerS: rate((one) => one.engine.num_prompt_tokens),
    stepsPerS: rate((one) => one.engine.num_steps),
    numRunning: sum(now, (one) => one.num_rows),
    numWaiting: sum(now, (one) => one.num_waiting),
    kvShare: capacity ? sum(now, (one) => one.engine.kv.used_bytes) / capacity : 0,
  }
}

/** Which share of the last steps' rows ran each stage; nothing for a student that ran no step. */
function sharesOf(before: Live, now: Live): Record<string, Record<string, number>> {
  const found: Record<string, Record<string, number>> = {}
  for (const student of now.students) {
    const earlier = before.students.find((one) => one.name === student.name)
    if (earlier === undefined) continue
    const rows = Object.entries(student.engine.stage_rows).map(
      ([stage, count]) => [stage, count - (earlier.engine.stage_rows[stage] ?? 0)] as const,
    )
    const most = Math.max(0, ...rows.map(([, count]) => count))
    if (most > 0) found[student.name] = Object.fromEntries(rows.map(([stage, count]) => [stage, count / most]))
  }
  return found
}
