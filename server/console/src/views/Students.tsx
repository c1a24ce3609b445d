import { useCallback, useEffect, useState } from 'preact/hooks'
import { ApiError, currentKeys, getJson, onKeys, sendJson } from '../api'
import type { ViewProps } from '../app'
import { Strip } from '../parts/Strip'
import { Trouble } from '../parts/Trouble'
import { type Text, useText } from '../text'
import { type Head, type PoolStudent, type StudentFacts, type Task, TASKS, type TaskFigures } from '../wire'
import { DefaultRouting } from './DefaultRouting'
import { Pareto } from './Pareto'
import { type Pins, usePins } from './usePins'

export function Students({ facts, askKey, refresh }: ViewProps) {
  const t = useText()
  const admin = usePool(refresh)
  const pins = usePins()
  return (
    <div class="page students">
      <header>
        <h1>{t.views.students}</h1>
        <p>{t.studentsText}</p>
      </header>
      {pins.gone && <Trouble error={pins.gone} onKey={() => askKey('api')} />}
      {facts?.students.map((student) => (
        <StudentCard
          key={student.name}
          student={student}
          pins={pins}
          canPin={admin.pool !== null}
          askKey={() => askKey('admin')}
        />
      ))}
      <section class="card" aria-labelledby="pool">
        <h2 id="pool">{t.pool}</h2>
        {!facts?.has_admin ? (
          <p class="soft">{t.noAdmin}</p>
        ) : admin.pool === null ? (
          <div class="row">
            <p class="soft">{t.readOnly}</p>
            <button type="button" onClick={() => askKey('admin')}>
              {t.giveAdminKey}
            </button>
          </div>
        ) : (
          <Pool pool={admin.pool} act={admin.act} shelf={admin.shelf} />
        )}
        {admin.error && <Trouble error={admin.error} onKey={() => askKey('admin')} />}
      </section>
    </div>
  )
}

interface StudentCardProps {
  student: StudentFacts
  pins: Pins
  canPin: boolean
  askKey: () => void
}

function StudentCard({ student, pins, canPin, askKey }: StudentCardProps) {
  const t = useText()
  const measured = TASKS.filter((task) => student.paths.some((path) => path.figures.some((one) => one.task === task)))
  const [task, setTask] = useState<Task>(measured[0] ?? 'general')
  return (
    <section class="card" aria-labelledby={`student-${student.name}`}>
      <div class="row between">
        <h2 id={`student-${student.name}`}>{student.name}</h2>
        <span class="soft small">
          {t.layersOf(student.num_layers, student.modules.map((one) => one.name).join(' → '))}
        </span>
      </div>
      <div class="columns wide-left">
        <div>
          <fieldset class="choice">
            <legend>{t.task}</legend>
            {TASKS.map((one) => (
              <label key={one} class="pick">
                <input type="radio" name={`task-${student.name}`} checked={one === task} onChange={() => setTask(one)} />
                <span>{t.tasks[one]}</span>
              </label>
            ))}
          </fieldset>
          <Pareto student={student} task={task} />
          {measured.length > 0 && <p class="soft small">{t.paretoLegend}</p>}
        </div>
        <dl class="pairs">
          <div>
            <dt>{t.precision}</dt>
            <dd>{student.precision}</dd>
          </div>
          <div>
            <dt>{t.context}</dt>
            <dd>{t.numTokens(student.max_context_tokens)}</dd>
          </div>
          {student.licence && (
            <div>
              <dt>{t.licence}</dt>
              <dd>{student.licence}</dd>
            </div>
          )}
          <div>
            <dt>{t.source}</dt>
            <dd>{student.source}</dd>
          </div>
        </dl>
      </div>
      <PathTable student={student} task={task} />
      <DefaultRouting student={student} task={task} pins={pins} canPin={canPin} askKey={askKey} />
      <details>
        <summary>{t.precisionsAndFiles(student.precisions.length, student.files.length)}</summary>
        <div class="columns">
          <table>
            <thead>
              <tr>
                <th scope="col">{t.precision}</th>
                <th scope="col">{t.weights}</th>
                <th scope="col">{t.headsTitle}</th>
              </tr>
            </thead>
            <tbody>
              {student.precisions.map((one) => (
                <tr key={one.name}>
                  <th scope="row">{one.name}</th>
                  <td>{t.bytes(one.weight_bytes)}</td>
                  <td>{one.heads.map((head) => t.heads[head]).join(', ')}</td>
                </tr>
              ))}
            </tbody>
          </table>
          <div class="scroller files" tabIndex={0}>
            <table>
              <thead>
                <tr>
                  <th scope="col">{t.file}</th>
                  <th scope="col">{t.size}</th>
                </tr>
              </thead>
              <tbody>
                {student.files.map((one) => (
                  <tr key={one.name}>
                    <td>{one.name}</td>
                    <td>{t.bytes(one.size_bytes)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </div>
      </details>
    </section>
  )
}

function PathTable({ student, task }: { student: StudentFacts; task: string }) {
  const t = useText()
  return (
    <div class="scroller" tabIndex={0}>
      <table class="paths">
        <caption class="offscreen">{t.pathsOf(student.name)}</caption>
        <thead>
          <tr>
            <th scope="col">{t.path}</th>
            <th scope="col">{t.headTitle}</th>
            <th scope="col">{t.compute}</th>
            <th scope="col">{t.accuracyKept}</th>
            <th scope="col">{t.agreement}</th>
            <th scope="col">{t.gate}</th>
            <th scope="col">{t.fidelity}</th>
          </tr>
        </thead>
        <tbody>
          {[...student.paths].reverse().flatMap((path) =>
            (Object.entries(path.compute_shares) as [Head, number][]).map(([head, share], index) => {
              const figures = path.figures.find((one) => one.task === task && one.head === head)
              return (
                <tr key={`${path.name} ${head}`}>
                  <th scope="row">
                    {index === 0 && (
                      <span class="cell">
                        <Strip student={student} path={path.name} head={head} /> {path.name}
                      </span>
                    )}
                  </th>
                  <td>{t.heads[head]}</td>
                  <td>{t.percent(share)}</td>
                  <td>{keptWords(t, figures, path.is_full && head === 'exact')}</td>
                  <td>{figures?.agreement.kept == null ? '–' : t.percent(figures.agreement.kept)}</td>
                  <td>{verdictWords(t, figures?.gate, path.is_full && head === 'exact')}</td>
                  <td>{verdictWords(t, figures?.fidelity, path.is_full && head === 'exact')}</td>
                </tr>
              )
            }),
          )}
        </tbody>
      </table>
    </div>
  )
}

function keptWords(t: Text, figures: TaskFigures | undefined, isReference: boolean): string {
  if (isReference) return t.reference
  const { kept, low, high } = figures?.accuracy ?? { kept: null, low: null, high: null }
  return kept === null ? t.notMeasuredYet : t.between(kept, low, high)
}

function verdictWords(t: Text, verdict: keyof Text['verdicts'] | undefined, isReference: boolean) {
  if (isReference) return t.reference
  return verdict === undefined ? '–' : <span class={`verdict-${verdict}`}>{t.verdicts[verdict]}</span>
}

interface Shelf {
  students: { name: string; size_bytes: number; is_served: boolean }[]
}

interface PoolActions {
  pool: PoolStudent[] | null
  shelf: Shelf | null
  error: ApiError | null
  act: (method: 'POST' | 'DELETE', path: string, body?: unknown) => Promise<void>
}

/** The pool, read every two seconds with the admin key; null without one. */
function usePool(refresh: () => void): PoolActions {
  const [pool, setPool] = useState<PoolStudent[] | null>(null)
  const [shelf, setShelf] = useState<Shelf | null>(null)
  const [error, setError] = useState<ApiError | null>(null)
  const fail = (failure: unknown) =>
    setError(failure instanceof ApiError ? failure : new ApiError('failed', String(failure)))
  const read = useCallback(async () => {
    if (!currentKeys().admin) return setPool(null)
    try {
      const options = { admin: true }
      setPool((await getJson<{ students: PoolStudent[] }>('/admin/students', options)).students)
      setShelf(await getJson<Shelf>('/admin/shelf', options))
      setError(null)
    } catch (failure) {
      setPool(null)
      fail(failure)
    }
  }, [])
  useEffect(() => {
    read()
    const timer = setInterval(() => {
      if (!document.hidden && pool !== null) read()
    }, 2000)
    const forget = onKeys(read)
    return () => {
      clearInterval(timer)
      forget()
    }
  }, [read, pool === null])
  const act = async (method: 'POST' | 'DELETE', path: string, body?: unknown) => {
    try {
      await sendJson(method, path, body, { admin: true })
      await read()
      refresh()
    } catch (failure) {
      fail(failure)
    }
  }
  return { pool, shelf, error, act }
}

function Pool({ pool, shelf, act }: { pool: PoolStudent[]; shelf: Shelf | null; act: PoolActions['act'] }) {
  const t = useText()
  const free = shelf?.students.filter((one) => !one.is_served && !pool.some((other) => other.name === one.name)) ?? []
  return (
    <>
      <div class="scroller" tabIndex={0}>
        <table>
          <thead>
            <tr>
              <th scope="col">{t.student}</th>
              <th scope="col">{t.state}</th>
              <th scope="col">{t.running}</th>
              <th scope="col">{t.actions}</th>
            </tr>
          </thead>
          <tbody>
            {pool.map((one) => (
              <PoolRow key={one.name} student={one} act={act} />
            ))}
          </tbody>
        </table>
      </div>
      <AddStudent free={free.map((one) => one.name)} act={act} />
    </>
  )
}

function PoolRow({ student, act }: { student: PoolStudent; act: PoolActions['act'] }) {
  const t = useText()
  const [isSure, setSure] = useState(false)
  const at = `/admin/students/${encodeURIComponent(student.name)}`
  const isDraining = student.status === 'draining'
  const isServed = ['ready', 'loading', 'draining', 'unhealthy'].includes(student.status)
  return (
    <tr>
      <th scope="row">{student.name}</th>
      <td>
        {t.states[student.status as keyof Text['states']] ?? student.status}
        {student.error && <p class="bad small">{student.error}</p>}
      </td>
      <td>{t.count(student.num_running)}</td>
      <td>
        <div class="row">
          {isServed && (
            <button type="button" onClick={() => act('POST', `${at}/${isDraining ? 'resume' : 'drain'}`)}>
              {isDraining ? t.resume : t.drain}
            </button>
          )}
          {isSure ? (
            <button type="button" class="danger" autofocus onBlur={() => setSure(false)} onClick={() => act('DELETE', at)}>
              {t.reallyRemove(student.name)}
            </button>
          ) : (
            <button type="button" disabled={student.status === 'opening'} onClick={() => setSure(true)}>
              {t.remove}
            </button>
          )}
        </div>
      </td>
    </tr>
  )
}

function AddStudent({ free, act }: { free: string[]; act: PoolActions['act'] }) {
  const t = useText()
  const [name, setName] = useState('')
  const chosen = free.includes(name) ? name : (free[0] ?? '')
  if (free.length === 0) return <p class="soft small">{t.nothingToAdd}</p>
  return (
    <form
      class="row add"
      onSubmit={(event) => {
        event.preventDefault()
        act('POST', '/admin/shelf', { name: chosen })
      }}
    >
      <label>
        {t.addStudent}
        <select value={chosen} onChange={(event) => setName(event.currentTarget.value)}>
          {free.map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
      </label>
      <button type="submit">{t.add}</button>
    </form>
  )
}
