import { Axes, type Frame, scalesIn } from '../parts/Axes'
import { useText } from '../text'
import type { StudentFacts, Task } from '../wire'
import { figureWords, isKnown } from './figureWords'
import type { Use } from './uses'

const W = 300
const H = 190
const LEFT = 44
const RIGHT = 16
const TOP = 20
const BOTTOM = 24
const LEAST_RADIUS = 3
const MOST_RADIUS = 12

/** Task by task: how much of the student each path runs, against what it keeps on live traffic. */
export function QualityPlots({ facts, uses, least }: { facts: StudentFacts; uses: Use[]; least: number }) {
  const t = useText()
  const frame = frameOf(facts, uses, least)
  const tasks = [...new Set(uses.map((one) => one.task))]
  return (
    <>
      <div class="plots">
        {tasks.map((task) => (
          <Plot key={task} task={task} uses={uses.filter((one) => one.task === task)} frame={frame} least={least} />
        ))}
      </div>
      <p class="soft small">{t.qualityLegend}</p>
    </>
  )
}

/** Paths with too few samples are listed, not drawn. */
function Plot({ task, uses, frame, least }: { task: Task; uses: Use[]; frame: Frame; least: number }) {
  const t = useText()
  const drawn = uses.filter((one) => isDrawn(one, least))
  const rest = uses.filter((one) => !isDrawn(one, least))
  return (
    <figure>
      <figcaption>{t.tasks[task] ?? task}</figcaption>
      {drawn.length > 0 && <Picture task={task} uses={drawn} frame={frame} />}
      {rest.length > 0 && (
        <ul class="soft small">
          {rest.map((one) => (
            <li key={`${one.path} ${one.head}`}>
              {one.path}, {t.heads[one.head]}: {one.online ? figureWords(t, one.online, least) : t.fewerSamples(least, 0)}
            </li>
          ))}
        </ul>
      )}
    </figure>
  )
}

function Picture({ task, uses, frame }: { task: Task; uses: Use[]; frame: Frame }) {
  const t = useText()
  const { y } = scalesIn(frame)
  const floor = uses[0]?.online?.floor
  return (
    <svg
      class="pareto quality"
      viewBox={`0 0 ${W} ${H}`}
      role="img"
      aria-label={t.qualityPicture(t.tasks[task] ?? task, uses.length)}
    >
      <Axes frame={frame} across={tenths(...frame.costs)} up={tenths(...frame.kept)} />
      {floor !== undefined && <line class="floor" x1={LEFT} x2={W - RIGHT} y1={y(floor)} y2={y(floor)} />}
      {uses.map((one, index) => (
        <Point key={`${one.path} ${one.head}`} use={one} frame={frame} isLabelAbove={index % 2 === 1} />
      ))}
    </svg>
  )
}

/** Neighbours have their names above and below in turn, so that these do not lie over one another. */
function Point({ use, frame, isLabelAbove }: { use: Use; frame: Frame; isLabelAbove: boolean }) {
  const t = useText()
  const { kept, low, high } = use.online ?? {}
  if (use.compute === null || kept === null || kept === undefined) return null
  const scales = scalesIn(frame)
  const x = scales.x(use.compute)
  const y = scales.y(kept)
  const radius = LEAST_RADIUS + (MOST_RADIUS - LEAST_RADIUS) * Math.sqrt(use.share)
  const top = Math.min(scales.y(high ?? kept), y - radius)
  const bottom = Math.max(scales.y(low ?? kept), y + radius)
  return (
    <g class={use.standing.is_open ? 'point passed' : 'point out'}>
      <title>{t.pointOf(use.path, t.heads[use.head], use.compute, t.between(kept, low ?? null, high ?? null), use.share)}</title>
      <line class="interval" x1={x} x2={x} y1={scales.y(low ?? kept)} y2={scales.y(high ?? kept)} />
      <circle class={use.head} cx={x} cy={y} r={radius} />
      <text class="label" x={x} y={isLabelAbove ? top - 4 : bottom + 12} text-anchor="middle">
        {use.standing.is_open ? use.path : `${use.path} ×`}
      </text>
    </g>
  )
}

function isDrawn(use: Use, least: number): boolean {
  return use.compute !== null && use.online !== null && isKnown(use.online, least)
}

/** One for all tasks, so that they can be compared. */
function frameOf(facts: StudentFacts, uses: Use[], least: number): Frame {
  const drawn = uses.filter((one) => isDrawn(one, least)).flatMap((one) => (one.online ? [one.online] : []))
  const cheapest = Math.min(1, ...facts.paths.flatMap((path) => Object.values(path.compute_shares))) - 0.04
  const lowest = Math.min(0.7, ...drawn.flatMap((one) => [one.low ?? 1, one.floor])) - 0.05
  const highest = Math.max(1, ...drawn.map((one) => one.high ?? 1)) + 0.02
  const edges = { width: W, height: H, left: LEFT, right: RIGHT, top: TOP, bottom: BOTTOM }
  return { ...edges, costs: [cheapest, 1.04], kept: [lowest, highest] }
}

function tenths(from: number, to: number): number[] {
  const step = to - from > 0.55 ? 2 : 1
  const first = Math.ceil((from * 10) / step) * step
  return Array.from({ length: Math.floor((to * 10 - first) / step) + 1 }, (_, index) => (first + index * step) / 10)
}
