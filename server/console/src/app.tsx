/** The frame: five views, language, light and dark, keys. Which view is open is all that the address says. */

import type { ComponentType } from 'preact'
import { useSyncExternalStore } from 'preact/compat'
import { useCallback, useEffect, useMemo, useState } from 'preact/hooks'
import { ApiError, currentKeys, getJson, onKeys } from './api'
import { Chat } from './chat/Chat'
import { keepPreferences, type Preferences, readPreferences } from './kept'
import { KeyDialog } from './parts/KeyDialog'
import { ShortcutsDialog } from './parts/ShortcutsDialog'
import { DICTIONARIES, type Text, TextContext, useText } from './text'
import { Compare } from './views/Compare'
import { Live } from './views/Live'
import { RouteView } from './views/RouteView'
import { Students } from './views/Students'
import type { Facts, Model } from './wire'

export interface ViewProps {
  facts: Facts | null
  models: Model[]
  preferences: Preferences
  prefer: (change: Partial<Preferences>) => void
  askKey: (which: 'api' | 'admin') => void
  refresh: () => void
}

const VIEWS: [keyof Text['views'], ComponentType<ViewProps>][] = [
  ['chat', Chat],
  ['route', RouteView],
  ['compare', Compare],
  ['live', Live],
  ['students', Students],
]

export function App() {
  const [preferences, setPreferences] = useState(readPreferences)
  const prefer = useCallback((change: Partial<Preferences>) => {
    setPreferences((before) => {
      const next = { ...before, ...change }
      keepPreferences(next)
      return next
    })
  }, [])
  useEffect(() => {
    document.documentElement.dataset.theme = preferences.theme
    document.documentElement.lang = preferences.language === 'zh' ? 'zh-CN' : 'en'
  }, [preferences])
  return (
    <TextContext.Provider value={DICTIONARIES[preferences.language]}>
      <Shell preferences={preferences} prefer={prefer} />
    </TextContext.Provider>
  )
}

function Shell({ preferences, prefer }: Pick<ViewProps, 'preferences' | 'prefer'>) {
  const t = useText()
  const [view, setView] = useView()
  const [asked, setAsked] = useState<'api' | 'admin' | null>(null)
  const [isHelpOpen, setHelpOpen] = useState(false)
  const server = useServer(() => setAsked('api'))
  const View = useMemo(() => VIEWS.find(([name]) => name === view)?.[1] ?? Chat, [view])
  useShortcuts(setView, () => setHelpOpen(true))
  useEffect(() => {
    performance.mark('ready')
  }, [])
  useEffect(() => {
    document.title = `${t.views[view]} · fenhe`
  }, [view, t])
  return (
    <div class={`shell on-${view}`}>
      <a class="skip" href="#main" onClick={focusMain}>
        {t.skip}
      </a>
      <header class="rail">
        <Brand version={server.facts?.version ?? ''} isBusy={server.facts === null && server.trouble === null} />
        <nav aria-label={t.navigation}>
          {VIEWS.map(([name]) => (
            <a key={name} href={`#/${name}`} aria-current={name === view ? 'page' : undefined}>
              <Icon name={name} />
              <span>{t.views[name]}</span>
            </a>
          ))}
        </nav>
        <div class="controls">
          <button
            type="button"
            class="quiet"
            lang={preferences.language === 'zh' ? 'en' : 'zh-CN'}
            onClick={() => prefer({ language: preferences.language === 'zh' ? 'en' : 'zh' })}
          >
            {preferences.language === 'zh' ? 'English' : '中文'}
          </button>
          <button type="button" class="quiet" onClick={() => prefer({ theme: nextTheme(preferences.theme) })}>
            {t.themes[preferences.theme]}
          </button>
          <button type="button" class="quiet" onClick={() => setAsked('api')}>
            {currentKeys().api || currentKeys().admin ? t.keyGiven : t.keyButton}
          </button>
          <button type="button" class="quiet help" onClick={() => setHelpOpen(true)}>
            {t.shortcuts}
          </button>
        </div>
      </header>
      <main id="main" tabIndex={view === 'chat' ? -1 : 0}>
        {server.trouble !== null && <ServerTrouble error={server.trouble} refresh={server.refresh} />}
        <View
          facts={server.facts}
          models={server.models}
          preferences={preferences}
          prefer={prefer}
          askKey={setAsked}
          refresh={server.refresh}
        />
      </main>
      {asked !== null && (
        <KeyDialog which={asked} hasAdmin={server.facts?.has_admin ?? true} onClose={() => setAsked(null)} />
      )}
      {isHelpOpen && <ShortcutsDialog onClose={() => setHelpOpen(false)} />}
    </div>
  )
}

function Brand({ version, isBusy }: { version: string; isBusy: boolean }) {
  return (
    <a class={`brand ${isBusy ? 'busy' : ''}`} href="#/chat" title={`fenhe ${version}`}>
      <svg viewBox="0 0 40 24" width="40" height="24" aria-hidden="true">
        {[24, 18, 12, 12, 18, 24].map((height, index) => (
          <rect key={index} x={index * 6} y={(24 - height) / 2} width="4" height={height} rx="1" />
        ))}
        <circle cx="38" cy="12" r="2" />
      </svg>
      <span class="names">
        <strong>fenhe</strong>
        <span lang="zh-CN">分合</span>
      </span>
    </a>
  )
}

const SHAPES: Record<keyof Text['views'], string> = {
  chat: 'M3 4h14v9H9l-4 3v-3H3z',
  route: 'M3 10h4l6-5h4M7 10l6 5h4',
  compare: 'M4 4h4v12H4zM12 4h4v12h-4z',
  live: 'M3 11h3l2-6 4 11 2-5h3',
  students: 'M4 16V9M8 16V4M12 16v-5M16 16V7',
}

function Icon({ name }: { name: keyof Text['views'] }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">
      <path d={SHAPES[name]} />
    </svg>
  )
}

function ServerTrouble({ error, refresh }: { error: ApiError; refresh: () => void }) {
  const t = useText()
  return (
    <div class="notice bad" role="alert">
      <span>{t.troubles[error.trouble]}</span> <span class="detail">{error.message}</span>
      <button type="button" onClick={refresh}>
        {t.tryAgain}
      </button>
    </div>
  )
}

interface Server {
  facts: Facts | null
  models: Model[]
  trouble: ApiError | null
  refresh: () => void
}

/** Facts and models, read again when a key is given and, while the server does not answer, every few seconds. */
function useServer(askKey: () => void): Server {
  const [facts, setFacts] = useState<Facts | null>(null)
  const [models, setModels] = useState<Model[]>([])
  const [trouble, setTrouble] = useState<ApiError | null>(null)
  const refresh = useCallback(async () => {
    try {
      const [newFacts, list] = await Promise.all([
        getJson<Facts>('/console/facts'),
        getJson<{ data: Model[] }>('/v1/models'),
      ])
      setFacts(newFacts)
      setModels(list.data)
      setTrouble(null)
    } catch (error) {
      const known = error instanceof ApiError ? error : new ApiError('failed', String(error))
      setTrouble(known)
      if (known.trouble === 'key') askKey()
    }
  }, [])
  useEffect(() => {
    refresh()
    return onKeys(refresh)
  }, [refresh])
  const isGone = trouble?.trouble === 'gone'
  useEffect(() => {
    if (!isGone) return undefined
    const timer = setInterval(refresh, 4000)
    return () => clearInterval(timer)
  }, [isGone, refresh])
  return { facts, models, trouble, refresh }
}

function useView(): [keyof Text['views'], (view: keyof Text['views']) => void] {
  const view = useSyncExternalStore(onAddress, viewInAddress)
  return [view, (next) => location.assign(`#/${next}`)]
}

function onAddress(tell: () => void): () => void {
  const follow = () => {
    tell()
    focusMain()
  }
  addEventListener('hashchange', follow)
  return () => removeEventListener('hashchange', follow)
}

function viewInAddress(): keyof Text['views'] {
  const name = location.hash.replace(/^#\//, '')
  return VIEWS.find(([view]) => view === name)?.[0] ?? 'chat'
}

function focusMain(event?: Event): void {
  event?.preventDefault()
  document.getElementById('main')?.focus({ preventScroll: true })
}

function useShortcuts(open: (view: keyof Text['views']) => void, help: () => void): void {
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const isTyping = (event.target as HTMLElement).closest('input, textarea, select, [contenteditable]') !== null
      const number = event.altKey && !event.ctrlKey && !event.metaKey ? Number(event.code.replace('Digit', '')) : 0
      const view = VIEWS[number - 1]?.[0]
      if (view !== undefined) {
        event.preventDefault()
        open(view)
      } else if (event.key === '?' && !isTyping) {
        help()
      } else if (event.key === '/' && !isTyping) {
        event.preventDefault()
        document.querySelector<HTMLElement>('textarea')?.focus()
      }
    }
    addEventListener('keydown', press)
    return () => removeEventListener('keydown', press)
  }, [open, help])
}

function nextTheme(theme: Preferences['theme']): Preferences['theme'] {
  return theme === 'system' ? 'light' : theme === 'light' ? 'dark' : 'system'
}
