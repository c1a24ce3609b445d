import { useEffect, useRef, useState } from 'preact/hooks'
import { ApiError, isAbort, sendJson } from '../api'
import type { ViewProps } from '../app'
import { Strip } from '../parts/Strip'
import { Trouble } from '../parts/Trouble'
import { useText } from '../text'
import { QUALITIES, type Quality, type Route, TASKS, type Task } from '../wire'

const PAUSE_MS = 120
const LONG_PAUSE_MS = 500

/** Type, and see the decision change: scores by task, the path, which words made it so, and what else would change it. */
export function RouteView({ facts, askKey }: ViewProps) {
  const t = useText()
  const [text, setText] = useState('')
  const [quality, setQuality] = useState<Quality>('balanced')
  const { route, error } = useRoute(text, quality)
  return (
    <div class="page route">
      <header>
        <h1>{t.views.route}</h1>
        <p>{t.routeText}</p>
      </header>
      <div class="columns">
        <section class="card" aria-labelledby="route-prompt">
          <h2 id="route-prompt">{t.prompt}</h2>
          <textarea
            rows={5}
            value={text}
            autofocus
            aria-labelledby="route-prompt"
            placeholder={t.routePlaceholder}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <fieldset class="choice">
            <legend>{t.quality}</legend>
            {QUALITIES.map((one) => (
              <label key={one} class="pick">
                <input type="radio" name="quality" checked={quality === one} onChange={() => setQuality(one)} />
                <span>{t.qualityNames[one]}</span>
              </label>
            ))}
          </fieldset>
          {error && <Trouble error={error} onKey={() => askKey('api')} />}
        </section>
        <section class="card decision" aria-labelledby="route-decision" aria-live="polite">
          <h2 id="route-decision">{t.decision}</h2>
          {route === null ? (
            <p class="soft">{t.nothingTyped}</p>
          ) : (
            <Decision route={route} facts={facts} />
          )}
        </section>
      </div>
      {route !== null && (
        <div class="columns">
          <section class="card" aria-labelledby="route-scores">
            <h2 id="route-scores">{t.scores}</h2>
            <Scores route={route} />
          </section>
          <section class="card" aria-labelledby="route-words">
            <h2 id="route-words">{t.wordsTitle}</h2>
            <Words text={text} route={route} />
          </section>
        </div>
      )}
      {route !== null && <Otherwise text={text} facts={facts} now={route} quality={quality} />}
    </div>
  )
}

function Decision({ route, facts }: { route: Route; facts: ViewProps['facts'] }) {
  const t = useText()
  const student = facts?.students.find((one) => one.name === route.student)
  const share = student?.paths.find((one) => one.name === route.path)?.compute_shares[route.head]
  return (
    <>
      <Strip student={student} path={route.path} head={route.head} size="large" />
      <p class="verdict">
        <strong>{route.path}</strong>
        {share !== undefined && <span>{t.ofCompute(share)}</span>}
        <span>{t.heads[route.head]}</span>
      </p>
      <p>{t.reasons[route.reason] ?? route.reason}</p>
      <dl class="pairs">
        <div>
          <dt>{t.task}</dt>
          <dd>
            {t.tasks[route.task]}
            {route.confidence !== null && ` · ${t.percent(route.confidence)}`}
          </dd>
        </div>
        <div>
          <dt>{t.student}</dt>
          <dd>{route.student}</dd>
        </div>
        {route.language !== null && (
          <div>
            <dt>{t.languageOfText}</dt>
            <dd>{route.language}</dd>
          </div>
        )}
        <div>
          <dt>{t.promptLength}</dt>
          <dd>{t.numTokens(route.num_prompt_tokens)}</dd>
        </div>
        <div>
          <dt>{t.decidedIn}</dt>
          <dd>{t.microseconds(route.decision_us)}</dd>
        </div>
        {route.fallbacks.length > 0 && (
          <div>
            <dt>{t.fallbacks}</dt>
            <dd>{route.fallbacks.map((one) => `${one.student}:${one.path}`).join(', ')}</dd>
          </div>
        )}
        {Object.entries(route.skipped).map(([name, why]) => (
          <div key={name}>
            <dt>{t.skipped(name)}</dt>
            <dd>{why}</dd>
          </div>
        ))}
      </dl>
    </>
  )
}

function Scores({ route }: { route: Route }) {
  const t = useText()
  if (route.probabilities === null) return <p class="soft">{t.reasons[route.reason] ?? t.notMeasuredYet}</p>
  const best = Math.max(...TASKS.map((task) => route.probabilities?.[task] ?? 0))
  return (
    <ul class="scores">
      {TASKS.map((task) => {
        const share = route.probabilities?.[task] ?? 0
        return (
          <li key={task} class={task === route.task ? 'chosen' : ''}>
            <span>{t.tasks[task]}</span>
            <span class="bar" aria-hidden="true">
              <span style={{ width: `${share * 100}%` }} />
            </span>
            <span class="figure">{t.percent(share)}</span>
            {share === best && task !== route.task && <span class="soft note">{t.notClearEnough}</span>}
          </li>
        )
      })}
    </ul>
  )
}

/** The text with each word as dark as it counts for the likeliest task; one that decides alone is underlined. */
function Words({ text, route }: { text: string; route: Route }) {
  const t = useText()
  const words = route.words ?? []
  if (words.length === 0) return <p class="soft">{t.noWords}</p>
  const most = Math.max(0.02, ...words.map((word) => Math.abs(word.pull)))
  const parts = []
  let at = 0
  for (const word of words) {
    parts.push(text.slice(at, word.start))
    const decides = word.task !== route.task
    const described = decides ? t.withoutWord(t.tasks[word.task]) : t.pull(word.pull)
    parts.push(
      <mark
        key={word.start}
        class={decides ? 'decides' : ''}
        data-pull={word.pull >= 0 ? Math.ceil((word.pull / most) * 4) : -1}
        title={described}
      >
        {text.slice(word.start, word.end)}
      </mark>,
    )
    at = word.end
  }
  parts.push(text.slice(at))
  const deciding = words.filter((word) => word.task !== route.task)
  return (
    <>
      <p class="words">{parts}</p>
      <p class="soft small">{t.wordsText}</p>
      {deciding.length > 0 && (
        <ul class="soft small">
          {deciding.slice(0, 4).map((word) => (
            <li key={word.start}>
              “{text.slice(word.start, word.end)}”: {t.withoutWord(t.tasks[word.task])}
            </li>
          ))}
        </ul>
      )}
    </>
  )
}

/** The path for every task at every quality, as the server decides it for this very text. */
function Otherwise({ text, facts, now, quality }: { text: string; facts: ViewProps['facts']; now: Route; quality: Quality }) {
  const t = useText()
  const grid = useGrid(text)
  return (
    <section class="card" aria-labelledby="route-otherwise">
      <h2 id="route-otherwise">{t.otherwise}</h2>
      <div class="scroller" tabIndex={0}>
        <table class="grid">
          <thead>
            <tr>
              <th scope="col">{t.task}</th>
              {QUALITIES.map((one) => (
                <th scope="col" key={one}>
                  {t.qualityNames[one]}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {TASKS.map((task) => (
              <tr key={task}>
                <th scope="row">{t.tasks[task]}</th>
                {QUALITIES.map((one) => {
                  const route = grid[`${task} ${one}`]
                  const isNow = task === now.task && one === quality
                  return (
                    <td key={one} class={isNow ? 'now' : ''} aria-current={isNow}>
                      {route ? (
                        <span class="cell">
                          <Strip
                            student={facts?.students.find((student) => student.name === route.student)}
                            path={route.path}
                            head={route.head}
                          />
                          {route.path}
                        </span>
                      ) : (
                        <span class="soft">…</span>
                      )}
                    </td>
                  )
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  )
}

function useRoute(text: string, quality: Quality): { route: Route | null; error: ApiError | null } {
  const [route, setRoute] = useState<Route | null>(null)
  const [error, setError] = useState<ApiError | null>(null)
  useAfterPause(text.trim() ? `${quality} ${text}` : '', PAUSE_MS, async (signal) => {
    if (!text.trim()) return setRoute(null)
    try {
      const body = { messages: [{ role: 'user', content: text }], fenhe: { quality }, explain: true }
      const found = await sendJson<Route>('POST', '/v1/route', body, { signal })
      setRoute(found)
      setError(null)
    } catch (failure) {
      if (!isAbort(failure)) setError(failure instanceof ApiError ? failure : new ApiError('failed', String(failure)))
    }
  })
  return { route, error }
}

function useGrid(text: string): Record<string, Route> {
  const [grid, setGrid] = useState<Record<string, Route>>({})
  useAfterPause(text, LONG_PAUSE_MS, async (signal) => {
    const found: Record<string, Route> = {}
    const ask = async (task: Task, quality: Quality) => {
      const body = { messages: [{ role: 'user', content: text }], fenhe: { task, quality } }
      found[`${task} ${quality}`] = await sendJson<Route>('POST', '/v1/route', body, { signal })
    }
    try {
      for (const quality of QUALITIES) await Promise.all(TASKS.map((task) => ask(task, quality)))
      setGrid(found)
    } catch {
      // The decision above tells what is wrong.
    }
  })
  return grid
}

/** Does something once its subject has stayed the same for a while; what was begun for an earlier one is given up. */
function useAfterPause(subject: string, pauseMs: number, work: (signal: AbortSignal) => Promise<void>): void {
  const latest = useRef(work)
  latest.current = work
  useEffect(() => {
    const control = new AbortController()
    const timer = setTimeout(() => latest.current(control.signal), pauseMs)
    return () => {
      clearTimeout(timer)
      control.abort()
    }
  }, [subject, pauseMs])
}
