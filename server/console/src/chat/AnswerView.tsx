import { useState } from 'preact/hooks'
import { CopyButton } from '../parts/CopyButton'
import { Markdown } from '../parts/Markdown'
import { Strip } from '../parts/Strip'
import { useText } from '../text'
import type { Facts, Head, StudentFacts } from '../wire'
import { type AnswerFacts, asCurl, asPython } from './answer'
import { TokenView } from './TokenView'

export interface AnswerProps {
  text: string
  answer: AnswerFacts | undefined
  facts: Facts | null
  isRunning?: boolean
  body?: () => Record<string, unknown>
  onAgain?: (() => void) | undefined
}

export function AnswerView({ text, answer, facts, isRunning = false, body, onAgain }: AnswerProps) {
  const t = useText()
  const [showsTokens, setShowsTokens] = useState(false)
  const tokens = answer?.tokens
  return (
    <article class={`turn answer ${isRunning ? 'running' : ''}`} aria-label={t.answer} aria-busy={isRunning}>
      {tokens && showsTokens ? <TokenView tokens={tokens} /> : <Markdown text={text} />}
      {isRunning && !text && <p class="soft waiting">{t.waitingForFirst}</p>}
      {answer && <AnswerLine answer={answer} facts={facts} isRunning={isRunning} />}
      {!isRunning && (
        <div class="actions">
          <CopyButton text={text} />
          {onAgain && (
            <button type="button" class="quiet" onClick={onAgain}>
              {t.regenerate}
            </button>
          )}
          {tokens && (
            <button type="button" class="quiet" aria-pressed={showsTokens} onClick={() => setShowsTokens(!showsTokens)}>
              {t.probabilities}
            </button>
          )}
          {body && <CopyButton label={t.asCurl} text={() => asCurl(body())} />}
          {body && <CopyButton label={t.asPython} text={() => asPython(body())} />}
        </div>
      )}
    </article>
  )
}

/** Which part of the model answered, and how fast: the line under every answer. */
export function AnswerLine({ answer, facts, isRunning }: { answer: AnswerFacts; facts: Facts | null; isRunning: boolean }) {
  const t = useText()
  const student = facts?.students.find((one) => one.name === answer.student)
  const figures: [string, string][] = []
  if (answer.task) {
    const sure = answer.confidence === null ? '' : ` ${t.percent(answer.confidence)}`
    figures.push([t.task, `${t.tasks[answer.task as keyof typeof t.tasks] ?? answer.task}${sure}`])
  }
  if (answer.computeShare !== null) figures.push([t.compute, t.percent(answer.computeShare)])
  if (answer.tokensPerS !== null) figures.push([t.speed, t.tokensPerS(answer.tokensPerS)])
  if (answer.firstMs !== null) figures.push([t.firstToken, t.milliseconds(answer.firstMs)])
  if (answer.numTokens) figures.push([t.length, t.numTokens(answer.numTokens)])
  if (answer.cache) figures.push([t.cache, t.caches[answer.cache as keyof typeof t.caches] ?? answer.cache])
  const end = t.finishes[answer.finish as keyof typeof t.finishes]
  return (
    <div class="facts">
      {answer.path && (
        <span class="path">
          <Strip student={student} path={answer.path} head={headOf(student, answer)} isRunning={isRunning} />
          <strong title={reasonOf(t.reasons, answer.reason)}>{answer.path}</strong>
        </span>
      )}
      <dl>
        {figures.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {end && !isRunning && <span class="end">{end}</span>}
    </div>
  )
}

function reasonOf(reasons: Record<string, string>, reason: string | null): string {
  return reason === null ? '' : (reasons[reason] ?? reason)
}

/** The head whose cost the answer's token had. */
function headOf(student: StudentFacts | undefined, answer: AnswerFacts): Head | undefined {
  const shares = student?.paths.find((one) => one.name === answer.path)?.compute_shares
  const { exact, cheap } = shares ?? {}
  if (answer.tokenShare === null || exact === undefined) return undefined
  if (cheap === undefined) return 'exact'
  return Math.abs(answer.tokenShare - cheap) < Math.abs(answer.tokenShare - exact) ? 'cheap' : 'exact'
}
