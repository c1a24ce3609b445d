import { useState } from 'preact/hooks'
import type { ApiError } from '../api'
import { StandingWords } from '../parts/StandingWords'
import { Strip } from '../parts/Strip'
import { Trouble } from '../parts/Trouble'
import { useText } from '../text'
import type { OnlineQuality, OnlineTask, PathFacts, Pin, Standing, StudentFacts, Task } from '../wire'
import { figureWords } from './figureWords'
import type { Pins, Place } from './usePins'

const UNDECIDED: Standing = { is_open: true, decided_by: null, reason: '' }

export interface DefaultRoutingProps {
  student: StudentFacts
  task: Task
  pins: Pins
  canPin: boolean
  askKey: () => void
}

/** Which paths default routing takes for a task, who decided that and why, and with the admin key what overrules it. */
export function DefaultRouting({ student, task, pins, canPin, askKey }: DefaultRoutingProps) {
  const t = useText()
  const [reason, setReason] = useState('')
  const [said, setSaid] = useState('')
  const [error, setError] = useState<ApiError | null>(null)
  const { quality } = pins
  if (quality === null) return null
  const isPinning = canPin && quality.mode !== 'off'
  const act = async (place: Place, isOpen: boolean | null) => {
    const failure = isOpen === null ? await pins.unpin(place) : await pins.pin(place, isOpen, reason)
    setError(failure)
    if (failure !== null) return
    setReason('')
    setSaid(isOpen === null ? t.unpinnedNow(place.path, t.tasks[task]) : t.pinnedNow(place.path, t.tasks[task], isOpen))
  }
  const id = `routing-${student.name}`
  return (
    <section class="routing" aria-labelledby={id}>
      <h3 id={id}>{t.defaultRouting(t.tasks[task])}</h3>
      <p class="soft small">
        {t.onlineModes[quality.mode]} {quality.mode === 'off' && t.pinsOff}
      </p>
      <div class="scroller" tabIndex={0}>
        <table>
          <thead>
            <tr>
              <th scope="col">{t.path}</th>
              <th scope="col">{t.liveQuality}</th>
              <th scope="col">{t.inRouting}</th>
              {isPinning && <th scope="col">{t.actions}</th>}
            </tr>
          </thead>
          <tbody>
            {[...student.paths].reverse().map((path) => (
              <Row
                key={path.name}
                student={student}
                task={task}
                path={path}
                quality={quality}
                act={isPinning ? act : undefined}
              />
            ))}
          </tbody>
        </table>
      </div>
      {isPinning ? (
        <label>
          {t.pinReason}
          <input maxLength={200} value={reason} onInput={(event) => setReason(event.currentTarget.value)} />
        </label>
      ) : (
        quality.mode !== 'off' && <p class="soft small">{t.pinsReadOnly}</p>
      )}
      {error && <Trouble error={error} onKey={askKey} />}
      <p class="offscreen" role="status">
        {said}
      </p>
    </section>
  )
}

interface RowProps {
  student: StudentFacts
  task: Task
  path: PathFacts
  quality: OnlineQuality
  act: ((place: Place, isOpen: boolean | null) => Promise<void>) | undefined
}

function Row({ student, task, path, quality, act }: RowProps) {
  const t = useText()
  const place = { student: student.name, task, path: path.name }
  const isHere = (one: Place) => one.student === place.student && one.task === task && one.path === path.name
  const uses = quality.tasks.filter(isHere)
  const pin = quality.pins.find(isHere)
  return (
    <tr>
      <th scope="row">
        <span class="cell">
          <Strip student={student} path={path.name} /> {path.name}
        </span>
      </th>
      <td>
        {uses.length === 0 && t.noSamples}
        {uses.map((one) => (
          <p key={one.head}>
            {t.heads[one.head]}: {figureWords(t, one, quality.min_samples)}
          </p>
        ))}
      </td>
      <td>
        {standingsOf(uses, pin).map((one, index) => (
          <StandingWords key={index} standing={one} />
        ))}
      </td>
      {act && (
        <td>
          <div class="row">
            <PinButton place={place} isOpen={true} pin={pin} act={act} />
            {!path.is_full && <PinButton place={place} isOpen={false} pin={pin} act={act} />}
          </div>
        </td>
      )}
    </tr>
  )
}

interface PinButtonProps {
  place: Place
  isOpen: boolean
  pin: Pin | undefined
  act: (place: Place, isOpen: boolean | null) => Promise<void>
}

/** Pins the path in or out; unpins it where an operator has pinned it that way. What the settings pin stays pinned. */
function PinButton({ place, isOpen, pin, act }: PinButtonProps) {
  const t = useText()
  const isPinned = pin?.is_open === isOpen
  const isOperators = pin?.decided_by === 'operator'
  const label = isPinned && isOperators ? t.unpin : isOpen ? t.keepIn : t.keepOut
  return (
    <button
      type="button"
      disabled={isPinned && !isOperators}
      aria-label={`${label}: ${place.path}, ${t.tasks[place.task as Task]}`}
      onClick={() => act(place, isPinned ? null : isOpen)}
    >
      {label}
    </button>
  )
}

/** Of a pin, or else of the path with each of its heads, without repeating itself. */
function standingsOf(uses: OnlineTask[], pin: Pin | undefined): Standing[] {
  if (pin !== undefined) return [pin]
  const decided = uses.filter((one) => one.decided_by !== null)
  const found = decided.filter(
    (one, index) => decided.findIndex((other) => other.is_open === one.is_open && other.reason === one.reason) === index,
  )
  return found.length ? found : [UNDECIDED]
}
