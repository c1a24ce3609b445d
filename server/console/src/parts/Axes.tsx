import { useText } from '../text'

/** A picture of cost (across) and quality (up) in its SVG: margins in its units, and the shares at its edges. */
export interface Frame {
  width: number
  height: number
  left: number
  right: number
  top: number
  bottom: number
  costs: [number, number]
  kept: [number, number]
}

export interface Scales {
  x: (cost: number) => number
  y: (kept: number) => number
}

export function scalesIn({ width, height, left, right, top, bottom, costs, kept }: Frame): Scales {
  const [cheapest, dearest] = costs
  const [lowest, highest] = kept
  return {
    x: (cost) => left + ((cost - cheapest) / (dearest - cheapest)) * (width - left - right),
    y: (share) => top + ((highest - share) / (highest - lowest)) * (height - top - bottom),
  }
}

/** Lines and labels at the shares in `up`, labels at the costs in `across`. */
export function Axes({ frame, across, up }: { frame: Frame; across: number[]; up: number[] }) {
  const t = useText()
  const { x, y } = scalesIn(frame)
  return (
    <>
      {up.map((kept) => (
        <g key={kept}>
          <line class="line" x1={frame.left} x2={frame.width - frame.right} y1={y(kept)} y2={y(kept)} />
          <text class="tick" x={frame.left - 8} y={y(kept) + 4} text-anchor="end">
            {t.percent(kept)}
          </text>
        </g>
      ))}
      {across.map((cost) => (
        <text key={cost} class="tick" x={x(cost)} y={frame.height - frame.bottom + 18} text-anchor="middle">
          {t.percent(cost)}
        </text>
      ))}
    </>
  )
}
