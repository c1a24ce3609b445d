import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import { ApiError, isAbort } from '../api'
import type { ViewProps } from '../app'
import { bodyOf, type Progress, progressOf, streamAnswer } from '../chat/answer'
import { AnswerLine } from '../chat/AnswerView'
import { ModelSelect } from '../chat/SettingsPanel'
import { DEFAULT_SETTINGS } from '../kept'
import { Markdown } from '../parts/Markdown'
import { Strip } from '../parts/Strip'
import { Trouble } from '../parts/Trouble'
import { useText } from '../text'
import type { Model } from '../wire'
import { align, type Mark, runsOf } from './align'

type Shown = 'text' | 'tokens'
type Side = { progress: Progress | null; error: ApiError | null; isRunning: boolean }

const SHOWN: Shown[] = ['text', 'tokens']
const IDLE: Side = { progress: null, error: null, isRunning: false }

/** The same prompt on two paths at once, with what each costs: as text like in a chat, or token by token with what only
 * one of them wrote marked. */
export function Compare({ facts, models, askKey }: ViewProps) {
  const t = useText()
  const [prompt, setPrompt] = useState('')
  const [most, setMost] = useState('120')
  const [chosen, setChosen] = useState<(string | null)[]>([null, null])
  const [sides, setSides] = useState<Side[]>([IDLE, IDLE])
  const [shown, setShown] = useState<Shown>('text')
  const stop = useRef<AbortController | null>(null)
  const paths = models.filter((one) => !one.fenhe.is_routed)
  const picked = chosen.map((one, index) => one ?? usual(paths, index))
  const isRunning = sides.some((side) => side.isRunning)
  const marks = useMemo(() => align(tokensOf(sides[0]), tokensOf(sides[1])), [sides])

  useEffect(() => () => stop.current?.abort(), [])

  const run = async (event: Event) => {
    event.preventDefault()
    if (!prompt.trim() || isRunning) return
    stop.current = new AbortController()
    const signal = stop.current.signal
    const set = (index: number, part: Partial<Side>) =>
      setSides((before) => before.map((side, one) => (one === index ? { ...side, ...part } : side)))
    const one = async (index: number) => {
      set(index, { ...IDLE, isRunning: true })
      const settings = { ...DEFAULT_SETTINGS, model: picked[index] ?? 'auto', temperature: '0', max_tokens: most, logprobs: true, cache: 'no' as const }
      try {
        const body = bodyOf([{ role: 'user', text: prompt }], settings)
        set(index, { progress: await streamAnswer(body, signal, (progress) => set(index, { progress })) })
      } catch (error) {
        const progress = progressOf(error)
        const told = error instanceof ApiError ? error : new ApiError('failed', String(error))
        set(index, { ...(progress ? { progress } : {}), error: isAbort(error) ? null : told })
      } finally {
        set(index, { isRunning: false })
      }
    }
    await Promise.all([one(0), one(1)])
  }

  return (
    <div class="page compare">
      <header>
        <h1>{t.views.compare}</h1>
        <p>{t.compareText}</p>
      </header>
      <form class="card" onSubmit={run}>
        <label>
          {t.prompt}
          <textarea
            rows={3}
            value={prompt}
            autofocus
            onInput={(event) => setPrompt(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) run(event)
              if (event.key === 'Escape') stop.current?.abort()
            }}
          />
        </label>
        <div class="row compare-row">
          {picked.map((id, index) => (
            <label key={index}>
              {index === 0 ? t.left : t.right}
              <ModelSelect
                models={models}
                value={id}
                onChange={(next) => setChosen(chosen.map((before, one) => (one === index ? next : before)))}
              />
            </label>
          ))}
          <label>
            {t.sampling.max_tokens}
            <input type="number" min="1" value={most} onInput={(event) => setMost(event.currentTarget.value)} />
          </label>
          {isRunning ? (
            <button key="stop" type="button" class="primary stop" onClick={() => stop.current?.abort()}>
              {t.stop}
            </button>
          ) : (
            <button key="start" type="submit" class="primary" disabled={!prompt.trim()}>
              {t.compareNow}
            </button>
          )}
        </div>
      </form>
      <fieldset class="choice">
        <legend>{t.compareShow}</legend>
        {SHOWN.map((one) => (
          <label key={one} class="pick">
            <input type="radio" name="shown" checked={one === shown} onChange={() => setShown(one)} />
            <span>{t.compareShown[one]}</span>
          </label>
        ))}
      </fieldset>
      <div class="columns">
        {sides.map((side, index) => (
          <section class="card side" key={index} aria-label={index === 0 ? t.left : t.right} aria-busy={side.isRunning}>
            <SideHead id={picked[index] ?? ''} models={models} facts={facts} isRunning={side.isRunning} />
            {shown === 'text' ? (
              <Markdown text={side.progress?.text ?? ''} />
            ) : (
              <Tokens marks={index === 0 ? marks.left : marks.right} />
            )}
            {side.error && <Trouble error={side.error} onKey={() => askKey('api')} />}
            {side.progress && <AnswerLine answer={side.progress.facts} facts={facts} isRunning={side.isRunning} />}
          </section>
        ))}
      </div>
      {marks.left.length > 0 && marks.right.length > 0 && (
        <p class="summary" role="status">
          {isRunning ? t.comparing : summaryOf(t, marks)}
        </p>
      )}
    </div>
  )
}

function SideHead({ id, models, facts, isRunning }: { id: string; models: Model[]; facts: ViewProps['facts']; isRunning: boolean }) {
  const model = models.find((one) => one.id === id)
  const student = facts?.students.find((one) => one.name === model?.fenhe.student)
  return (
    <div class="side-head">
      <Strip student={student} path={model?.fenhe.path ?? ''} size="large" isRunning={isRunning} />
      <h2>{id}</h2>
    </div>
  )
}

/** The tokens of one answer. What only it has is marked, and said to be so to those who do not see that. */
function Tokens({ marks }: { marks: Mark[] }) {
  const t = useText()
  return (
    <div class="flow">
      {runsOf(marks).map((run, at) =>
        run.isShared ? (
          <span key={at}>{run.texts.join('')}</span>
        ) : (
          <mark key={at} class="differs">
            <span class="offscreen">{t.differs(run.texts.length)}</span>
            {run.texts.map((text, index) => (
              <span key={index} class="part">
                {text}
              </span>
            ))}
          </mark>
        ),
      )}
    </div>
  )
}

function summaryOf(t: ReturnType<typeof useText>, marks: ReturnType<typeof align>): string {
  if (marks.numAlike === marks.left.length && marks.left.length === marks.right.length) return t.allAlike(marks.numAlike)
  return t.partAt(marks.numAlike, marks.numShared / Math.max(marks.left.length, marks.right.length))
}

function tokensOf(side: Side | undefined): string[] {
  const { text = '', facts } = side?.progress ?? {}
  return facts?.tokens?.map((token) => token.text) ?? text.match(/\S+\s*|\s+/g) ?? []
}

/** The shallowest path on the left, the full one on the right. */
function usual(paths: Model[], index: number): string {
  const sorted = [...paths].sort((one, other) => one.fenhe.compute_share - other.fenhe.compute_share)
  return (index === 0 ? sorted[0] : sorted.at(-1))?.id ?? 'auto'
}
