import { useCallback, useEffect, useRef, useState } from 'preact/hooks'
import {
  type Conversation,
  DEFAULT_SETTINGS,
  forgetConversations,
  keepConversations,
  readConversations,
  type Turn,
} from '../kept'

export interface Conversations {
  list: Conversation[]
  current: Conversation
  isFull: boolean
  open: (id: string | null) => void
  change: (id: string, change: (before: Conversation) => Conversation) => void
  remove: (id: string) => void
  add: (conversations: Conversation[]) => void
}

/** Conversations, newest first, in this browser's storage where that is wanted. A new one is kept once it has a turn. */
export function useConversations(keepsHistory: boolean): Conversations {
  const [list, setList] = useState<Conversation[]>(() => (keepsHistory ? readConversations() : []))
  const [currentId, setCurrentId] = useState<string | null>(list[0]?.id ?? null)
  const [isFull, setFull] = useState(false)
  const fresh = useRef(emptyConversation())
  const current = list.find((one) => one.id === currentId) ?? fresh.current

  useEffect(() => {
    if (!keepsHistory) return forgetConversations()
    const timer = setTimeout(() => setFull(!keepConversations(list)), 300)
    return () => clearTimeout(timer)
  }, [list, keepsHistory])

  const latest = useRef(list)
  latest.current = list
  useEffect(() => {
    if (!keepsHistory) return undefined
    const leave = () => void keepConversations(latest.current)
    addEventListener('pagehide', leave)
    return () => removeEventListener('pagehide', leave)
  }, [keepsHistory])

  const open = useCallback((id: string | null) => {
    if (id === null) fresh.current = emptyConversation(fresh.current.settings)
    setCurrentId(id)
  }, [])
  const change = useCallback((id: string, apply: (before: Conversation) => Conversation) => {
    setList((before) => {
      const known = before.find((one) => one.id === id)
      if (known !== undefined) return before.map((one) => (one.id === id ? apply(one) : one))
      const next = apply(fresh.current)
      fresh.current = next
      return next.turns.length ? [next, ...before] : before.slice()
    })
    setCurrentId(id)
  }, [])
  const remove = useCallback((id: string) => {
    setList((before) => before.filter((one) => one.id !== id))
    fresh.current = emptyConversation()
    setCurrentId(null)
  }, [])
  const add = useCallback((conversations: Conversation[]) => {
    setList((before) => {
      const ids = new Set(before.map((one) => one.id))
      return [...conversations.filter((one) => !ids.has(one.id)), ...before]
    })
  }, [])
  return { list, current, isFull, open, change, remove, add }
}

function emptyConversation(settings = DEFAULT_SETTINGS): Conversation {
  return { id: newId(), title: '', changed: Date.now(), turns: [], settings }
}

/** `crypto.randomUUID` is not there on plain HTTP from another machine. */
function newId(): string {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}

export function titleOf(turns: Turn[]): string {
  const first = turns[0]
  const text = first?.text.trim() || first?.attachments?.[0]?.name || ''
  return text.replace(/\s+/g, ' ').slice(0, 80)
}
