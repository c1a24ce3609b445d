import { useCallback, useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { ApiError, isAbort } from '../api'
import type { ViewProps } from '../app'
import type { Attachment, Conversation, Settings, Turn } from '../kept'
import { Trouble } from '../parts/Trouble'
import { useText } from '../text'
import { bodyOf, type Progress, progressOf, streamAnswer } from './answer'
import { AnswerView } from './AnswerView'
import { Composer } from './Composer'
import { ChatList } from './ChatList'
import { SettingsPanel } from './SettingsPanel'
import { titleOf, useConversations } from './useConversations'
import { UserTurn } from './UserTurn'

interface Running {
  id: string
  progress: Progress | null
}

export function Chat({ facts, models, preferences, prefer, askKey }: ViewProps) {
  const t = useText()
  const chats = useConversations(preferences.keepsHistory)
  const { current, change } = chats
  const [running, setRunning] = useState<Running | null>(null)
  const [failure, setFailure] = useState<{ id: string; error: ApiError } | null>(null)
  const [isSettingsOpen, setSettingsOpen] = useState(false)
  const [isListOpen, setListOpen] = useState(false)
  const [said, setSaid] = useState('')
  const stop = useRef<AbortController | null>(null)
  const isHere = running?.id === current.id
  const scroller = useStickyScroll(isHere ? running?.progress : current)

  useEffect(() => () => stop.current?.abort(), [])

  const answer = useCallback(
    async (conversation: Conversation, turns: Turn[]) => {
      const { id, settings } = conversation
      const changed = (next: Turn[]) =>
        change(id, (before) => ({ ...before, title: titleOf(next), turns: next, settings, changed: Date.now() }))
      changed(turns)
      setFailure(null)
      setRunning({ id, progress: null })
      setSaid(t.answering)
      stop.current = new AbortController()
      const keep = (progress: Progress | null, finish?: string) => {
        if (progress === null || (!progress.text && !finish)) return
        const facts = finish ? { ...progress.facts, finish } : progress.facts
        changed([...turns, { role: 'assistant', text: progress.text, facts }])
      }
      try {
        keep(await streamAnswer(bodyOf(turns, settings), stop.current.signal, (progress) => setRunning({ id, progress })), undefined)
        setSaid(t.answered)
      } catch (error) {
        if (isAbort(error)) {
          keep(progressOf(error), 'stopped')
          setSaid(t.stopped)
        } else {
          const progress = progressOf(error)
          keep(progress?.text ? progress : null, 'broken')
          setFailure({ id, error: error instanceof ApiError ? error : new ApiError('failed', String(error)) })
          setSaid('')
        }
      } finally {
        stop.current = null
        setRunning(null)
      }
    },
    [change, t],
  )

  const send = (text: string, attachments: Attachment[]) => {
    const turn: Turn = { role: 'user', text, ...(attachments.length ? { attachments } : {}) }
    answer(current, [...current.turns, turn])
  }
  /** Answers the conversation up to its last user turn again. */
  const again = () => answer(current, current.turns.slice(0, lastUser(current.turns) + 1))
  const edit = (index: number, text: string) =>
    answer(current, [...current.turns.slice(0, index), { ...(current.turns[index] as Turn), text }])
  const setSettings = (settings: Settings) => change(current.id, (before) => ({ ...before, settings }))

  return (
    <div class={`chat ${isListOpen ? 'list-open' : ''}`}>
      <ChatList
        chats={chats}
        preferences={preferences}
        prefer={prefer}
        isBusy={running !== null}
        onDone={() => setListOpen(false)}
      />
      <section class="conversation" aria-label={t.views.chat}>
        <div class="topline">
          <button type="button" class="quiet only-narrow" aria-expanded={isListOpen} onClick={() => setListOpen(!isListOpen)}>
            {t.history}
          </button>
          <h1 class="title">{current.title || t.newChat}</h1>
          <button type="button" class="quiet" aria-expanded={isSettingsOpen} onClick={() => setSettingsOpen(!isSettingsOpen)}>
            {t.settings}
          </button>
        </div>
        {isSettingsOpen && (
          <SettingsPanel settings={current.settings} change={setSettings} models={models} onClose={() => setSettingsOpen(false)} />
        )}
        {chats.isFull && <p class="notice bad">{t.storageFull}</p>}
        <div class="turns" ref={scroller} tabIndex={0} role="log" aria-live="off" aria-label={t.turns}>
          {current.turns.length === 0 && <Welcome facts={facts} ask={(text) => send(text, [])} />}
          {current.turns.map((turn, index) =>
            turn.role === 'user' ? (
              <UserTurn key={index} turn={turn} canEdit={running === null} onEdit={(text) => edit(index, text)} />
            ) : (
              <AnswerView
                key={index}
                text={turn.text}
                answer={turn.facts}
                facts={facts}
                body={() => bodyOf(current.turns.slice(0, index), current.settings)}
                onAgain={running === null && index === current.turns.length - 1 ? again : undefined}
              />
            ),
          )}
          {isHere && (
            <AnswerView text={running?.progress?.text ?? ''} answer={running?.progress?.facts} facts={facts} isRunning />
          )}
          {failure !== null && failure.id === current.id && (
            <Trouble error={failure.error} onRetry={again} onKey={() => askKey('api')} />
          )}
        </div>
        <p class="offscreen" role="status">
          {said}
        </p>
        <Composer isRunning={running !== null} onSend={send} onStop={() => stop.current?.abort()} />
      </section>
    </div>
  )
}

function lastUser(turns: Turn[]): number {
  return turns.findLastIndex((turn) => turn.role === 'user')
}

function Welcome({ facts, ask }: { facts: ViewProps['facts']; ask: (text: string) => void }) {
  const t = useText()
  const num = facts?.students.reduce((sum, student) => sum + student.paths.length, 0) ?? 0
  return (
    <div class="welcome">
      <h2>{t.welcome}</h2>
      <p>{t.welcomeText(num)}</p>
      <ul>
        {t.examples.map((example) => (
          <li key={example}>
            <button type="button" onClick={() => ask(example)}>
              {example}
            </button>
          </li>
        ))}
      </ul>
    </div>
  )
}

/** Follows the end of the answer, unless the reader has scrolled up. */
function useStickyScroll(change: unknown) {
  const own = useRef<HTMLDivElement>(null)
  const isAtEnd = useRef(true)
  useEffect(() => {
    const element = own.current
    if (element === null) return undefined
    const note = () => {
      isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < 80
    }
    element.addEventListener('scroll', note, { passive: true })
    return () => element.removeEventListener('scroll', note)
  }, [])
  useLayoutEffect(() => {
    const element = own.current
    if (element !== null && isAtEnd.current) element.scrollTop = element.scrollHeight
  }, [change])
  return own
}
