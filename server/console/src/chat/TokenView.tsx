import { useState } from 'preact/hooks'
import { useText } from '../text'
import type { TokenFact } from './answer'

/** Every token, the more coloured the less likely it was; one that is pointed at or focused shows what else it might
 * have been. Arrow keys go from token to token. */
export function TokenView({ tokens }: { tokens: TokenFact[] }) {
  const t = useText()
  const [at, setAt] = useState<number | null>(null)
  const chosen = at === null ? undefined : tokens[at]
  const step = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (by === undefined) return
    event.preventDefault()
    const next = Math.max(0, Math.min(tokens.length - 1, (at ?? -by) + by))
    setAt(next)
  }
  return (
    <div class="tokens">
      <div
        class="flow"
        tabIndex={0}
        role="group"
        aria-label={t.probabilities}
        onKeyDown={step}
        onFocus={() => setAt((before) => before ?? 0)}
        onMouseLeave={() => setAt(null)}
      >
        {tokens.map((token, index) => (
          <span
            key={index}
            class={index === at ? 'token at' : 'token'}
            data-doubt={doubtOf(token.p)}
            onMouseEnter={() => setAt(index)}
          >
            {token.text}
          </span>
        ))}
      </div>
      <p class="others" aria-live="polite">
        {chosen === undefined
          ? t.probabilitiesHint
          : [
              `${show(chosen.text)} ${t.percent(chosen.p)}`,
              ...chosen.others.filter(([text]) => text !== chosen.text).map(([text, p]) => `${show(text)} ${t.percent(p)}`),
            ].join('   ')}
      </p>
    </div>
  )
}

/** 0 for a token that was nearly certain, 4 for one that was one of many. */
function doubtOf(p: number): number {
  return p > 0.9 ? 0 : p > 0.6 ? 1 : p > 0.3 ? 2 : p > 0.1 ? 3 : 4
}

function show(text: string): string {
  return JSON.stringify(text)
}
