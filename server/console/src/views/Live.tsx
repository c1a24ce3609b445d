import type { ViewProps } from '../app'
import { barsOf } from '../parts/Strip'
import { Trouble } from '../parts/Trouble'
import { type Text, useText } from '../text'
import type { Live as LiveState, LiveStudent, Row, StudentFacts } from '../wire'
import { isKnown } from './figureWords'
import { Online } from './Online'
import { useLive, type Watched } from './useLive'

const MOST_ROWS = 32

export function Live({ facts, askKey }: ViewProps) {
  const t = useText()
  const watched = useLive()
  const { live, samples, error } = watched
  const last = samples.at(-1)
  return (
    <div class="page live">
      <header>
        <h1>{t.views.live}</h1>
        <p>{t.liveText}</p>
      </header>
      {error && <Trouble error={error} onKey={() => askKey('api')} />}
      {live && <Alerts live={live} t={t} />}
      {live && (
        <div class="tiles">
          <Tile name={t.answerTokens} value={last ? t.tokensPerS(last.answerTokensPerS) : '–'} line={samples.map((one) => one.answerTokensPerS)} />
          <Tile name={t.promptTokens} value={last ? t.tokensPerS(last.promptTokensPerS) : '–'} line={samples.map((one) => one.promptTokensPerS)} />
          <Tile name={t.running} value={t.count(sumOf(live, (one) => one.num_rows))} line={samples.map((one) => one.numRunning)} />
          <Tile name={t.queued} value={t.count(queued(live))} line={samples.map((one) => one.numWaiting)} />
          <Tile name={t.kv} value={t.percent(last?.kvShare ?? kvShare(live))} line={samples.map((one) => one.kvShare)} />
          <Tile name={t.cacheHits} value={cacheWords(t, live)} />
        </div>
      )}
      {live?.students.map((student) => (
        <StudentNow
          key={student.name}
          student={student}
          facts={facts?.students.find((one) => one.name === student.name)}
          watched={watched}
        />
      ))}
      {live && <Online live={live} facts={facts} />}
    </div>
  )
}

function Tile({ name, value, line }: { name: string; value: string; line?: number[] }) {
  return (
    <div class="tile">
      <span class="name">{name}</span>
      <span class="value">{value}</span>
      {line && <Spark values={line} />}
    </div>
  )
}

function Spark({ values }: { values: number[] }) {
  const most = Math.max(1e-9, ...values)
  const points = values.map((value, index) => `${((120 - values.length + index) / 119) * 100},${24 - (value / most) * 22}`).join(' ')
  return (
    <svg class="spark" viewBox="0 0 100 26" preserveAspectRatio="none" aria-hidden="true">
      <polyline points={points} />
    </svg>
  )
}

/** The running step as a picture: a row for every sequence, deepest first as the engine keeps them, over the layers
 * that it runs. */
function StudentNow({ student, facts, watched }: { student: LiveStudent; facts: StudentFacts | undefined; watched: Watched }) {
  const t = useText()
  const rows = student.rows ?? []
  return (
    <section class="card" aria-label={student.name}>
      <div class="row between">
        <h2>{student.name}</h2>
        <span class={`state ${student.status}`}>{t.states[student.status]}</span>
      </div>
      {student.status === 'loading' && <Loading student={student} />}
      <p class="soft small">{student.rows === null ? t.engineSilent : t.rowsNow(student.num_rows, student.num_waiting)}</p>
      {facts && (
        <div class="scroller" tabIndex={0}>
          <Step rows={rows.slice(0, MOST_ROWS)} facts={facts} shares={watched.stageShares[student.name]} />
        </div>
      )}
      {rows.length > MOST_ROWS && <p class="soft small">{t.moreRows(rows.length - MOST_ROWS)}</p>}
      <RowTable rows={rows.slice(0, MOST_ROWS)} />
    </section>
  )
}

function Loading({ student }: { student: LiveStudent }) {
  const t = useText()
  return (
    <ul class="scores">
      {student.paths.map((path) => (
        <li key={path.path}>
          <span>{path.path}</span>
          <progress max={path.num_stages} value={path.num_loaded_stages} aria-label={t.loadingOf(path.path)} />
          <span class="figure">
            {path.num_loaded_stages} / {path.num_stages}
          </span>
        </li>
      ))}
    </ul>
  )
}

const ROW = 15
const LABEL = 70

function Step({ rows, facts, shares }: { rows: Row[]; facts: StudentFacts; shares: Record<string, number> | undefined }) {
  const t = useText()
  const full = facts.paths.find((path) => path.is_full)
  if (full === undefined) return null
  const bars = barsOf(facts, full)
  const scale = 560 / ((bars.at(-1)?.x ?? 0) + 4)
  const shown = Math.max(rows.length, 4)
  const height = shown * ROW + 34
  return (
    <svg class="step" viewBox={`0 0 ${LABEL + 640} ${height}`} role="img" aria-label={t.stepPicture(rows.length)}>
      {facts.modules.map((module, index) => {
        const own = bars.filter((bar) => bar.module === index)
        const x = LABEL + (own[0]?.x ?? 0) * scale
        return (
          <g key={module.name}>
            <text class="name" x={x} y={11}>
              {module.name}
            </text>
            {shares && (
              <text class="share" x={x} y={height - 3}>
                {t.ofRows(shares[module.name] ?? 0)}
              </text>
            )}
          </g>
        )
      })}
      {Array.from({ length: shown }, (_, index) => {
        const row = rows[index]
        const path = facts.paths.find((one) => one.name === row?.path)
        const y = 18 + index * ROW
        return (
          <g key={index} class={row?.status ?? 'empty'}>
            {row && (
              <text class="path" x={0} y={y + ROW - 5}>
                {row.path}
              </text>
            )}
            {(path ? barsOf(facts, path) : bars).map((bar, at) => (
              <g key={at}>
                <rect class="unlit" x={LABEL + bar.x * scale} y={y} width={4 * scale} height={ROW - 3} />
                {path && bar.share > 0 && (
                  <rect
                    class="lit"
                    x={LABEL + bar.x * scale}
                    y={y + ((ROW - 3) * (1 - bar.share)) / 2}
                    width={4 * scale}
                    height={(ROW - 3) * bar.share}
                  />
                )}
              </g>
            ))}
            {row && (
              <text class="done" x={LABEL + 572} y={y + ROW - 5}>
                {row.num_completion_tokens || `${row.num_computed_tokens}/${row.num_prompt_tokens}`}
              </text>
            )}
          </g>
        )
      })}
    </svg>
  )
}

/** The picture in words, for those who do not see it. */
function RowTable({ rows }: { rows: Row[] }) {
  const t = useText()
  if (rows.length === 0) return null
  return (
    <table class="offscreen">
      <caption>{t.stepPicture(rows.length)}</caption>
      <thead>
        <tr>
          <th scope="col">{t.path}</th>
          <th scope="col">{t.state}</th>
          <th scope="col">{t.length}</th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row, index) => (
          <tr key={index}>
            <td>{row.path}</td>
            <td>{row.status}</td>
            <td>{row.num_completion_tokens}</td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

function Alerts({ live, t }: { live: LiveState; t: Text }) {
  const alerts = alertsOf(live, t)
  return (
    <div class="alerts" role="status">
      {alerts.length === 0 ? <p class="fine">{t.allWell}</p> : null}
      {alerts.map((one) => (
        <p class="notice bad" key={one}>
          {one}
        </p>
      ))}
    </div>
  )
}

function alertsOf(live: LiveState, t: Text): string[] {
  const found: string[] = []
  if (live.is_draining) found.push(t.alerts.draining)
  if (live.students.length === 0) found.push(t.alerts.empty)
  for (const one of live.students) {
    const { engine, name } = one
    if (one.status === 'unhealthy') found.push(t.alerts.unhealthy(name, one.error ?? ''))
    if (one.status === 'draining' && !live.is_draining) found.push(t.alerts.drained(name))
    if (one.status === 'loading') found.push(t.alerts.loading(name))
    if (one.rows === null && one.status === 'ready') found.push(t.alerts.silent(name))
    if (engine.num_failed_steps > 0) found.push(t.alerts.failedSteps(name, engine.num_failed_steps))
    if (engine.kv.capacity_bytes > 0 && engine.kv.used_bytes / engine.kv.capacity_bytes > 0.95) found.push(t.alerts.kvFull(name))
  }
  for (const one of live.online_quality.tasks) {
    if (!one.is_open && one.decided_by === 'controller')
      found.push(t.alerts.closed(t.tasks[one.task as keyof Text['tasks']] ?? one.task, one.path))
    else if (one.is_open && isKnown(one, live.online_quality.min_samples) && one.high !== null && one.high < one.floor)
      found.push(t.alerts.below(t.tasks[one.task as keyof Text['tasks']] ?? one.task, one.path))
  }
  return [...new Set(found)]
}

function sumOf(live: LiveState, of: (student: LiveStudent) => number): number {
  return live.students.reduce((sum, student) => sum + of(student), 0)
}

function queued(live: LiveState): number {
  return sumOf(live, (one) => one.num_waiting + Object.values(one.door.num_queued).reduce((sum, count) => sum + count, 0))
}

function kvShare(live: LiveState): number {
  const capacity = sumOf(live, (one) => one.engine.kv.capacity_bytes)
  return capacity ? sumOf(live, (one) => one.engine.kv.used_bytes) / capacity : 0
}

function cacheWords(t: Text, live: LiveState): string {
  if (!live.cache.is_enabled) return t.off
  const { miss = 0, ...rest } = live.cache.outcomes
  const hits = Object.entries(rest).reduce((sum, [name, count]) => sum + (name === 'bypass' ? 0 : count), 0)
  return hits + miss === 0 ? '–' : t.percent(hits / (hits + miss))
}
