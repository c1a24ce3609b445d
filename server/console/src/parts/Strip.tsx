/**
 * A path as the modules that light up: a bar per layer, as high as the share of its neurons that the path runs, the
 * layers of a module together, and the head as a dot at the end: whole when it is exact, a ring when it is cheap.
 */

import type { Head, PathFacts, StudentFacts } from '../wire'
import { useText } from '../text'

const LAYER = 4
const GAP = 1.5
const MODULE_GAP = 5

export interface StripProps {
  student: StudentFacts | undefined
  path: string
  head?: Head | undefined
  size?: 'small' | 'large'
  isRunning?: boolean
  label?: string
}

export function Strip({ student, path, head, size = 'small', isRunning = false, label }: StripProps) {
  const t = useText()
  const facts = student?.paths.find((one) => one.name === path)
  if (student === undefined || facts === undefined) return null
  const height = size === 'large' ? 44 : 18
  const bars = barsOf(student, facts)
  const end = bars.at(-1)?.x ?? 0
  const dot = end + LAYER + MODULE_GAP + height * 0.14
  const width = dot + height * 0.14 + 1
  const described = label ?? t.pathPicture(path, Math.round(meanLit(facts) * 100), head)
  return (
    <svg
      class={`strip ${size} ${isRunning ? 'running' : ''}`}
      viewBox={`0 0 ${width} ${height}`}
      width={width * (size === 'large' ? 2 : 1)}
      height={height * (size === 'large' ? 2 : 1)}
      role="img"
      aria-label={described}
      data-path={path}
    >
      <title>{described}</title>
      {bars.map(({ x, share }, index) => (
        <g key={index}>
          <rect class="unlit" x={x} y={0} width={LAYER} height={height} rx={1} />
          {share > 0 && (
            <rect
              class="lit"
              x={x}
              y={(height * (1 - share)) / 2}
              width={LAYER}
              height={height * share}
              rx={1}
              style={{ animationDelay: `${index * 28}ms` }}
            />
          )}
        </g>
      ))}
      {facts.num_exit_layers > 0 && !facts.is_full && (
        <rect class="lit exit" x={exitAt(student, facts, bars)} y={height * 0.2} width={1.5} height={height * 0.6} />
      )}
      <circle class={head === 'cheap' ? 'head cheap' : 'head'} cx={dot} cy={height / 2} r={height * 0.13} />
    </svg>
  )
}

export function barsOf(student: StudentFacts, path: PathFacts): { x: number; share: number; module: number }[] {
  const bars: { x: number; share: number; module: number }[] = []
  let x = 0
  student.modules.forEach((module, index) => {
    if (index > 0) x += MODULE_GAP - GAP
    const num = Math.min(module.num_layers, 48)
    for (let one = 0; one < num; one++) {
      const layer = module.first_layer + Math.floor((one * module.num_layers) / num)
      bars.push({ x, share: path.lit[layer] ?? 0, module: index })
      x += LAYER + GAP
    }
  })
  return bars
}

function exitAt(student: StudentFacts, path: PathFacts, bars: { x: number; module: number }[]): number {
  const last = student.modules.findIndex((module) => module.name === path.modules.at(-1))
  const bar = bars.filter((one) => one.module === last).at(-1)
  return (bar?.x ?? 0) + LAYER + GAP
}

export function meanLit(path: PathFacts): number {
  return path.lit.length ? path.lit.reduce((sum, share) => sum + share, 0) / path.lit.length : 0
}
