/** What this browser keeps: conversations and preferences, nothing else and never a key. */

import type { AnswerFacts } from './chat/answer'
import type { Quality } from './wire'

export interface Attachment {
  name: string
  text: string
}

export interface Turn {
  role: 'user' | 'assistant'
  text: string
  attachments?: Attachment[]
  facts?: AnswerFacts
}

export interface Settings {
  model: string
  quality: Quality | ''
  system: string
  temperature: string
  top_p: string
  max_tokens: string
  seed: string
  cache: '' | 'yes' | 'no'
  logprobs: boolean
}

export interface Conversation {
  id: string
  title: string
  changed: number
  turns: Turn[]
  settings: Settings
}

export const DEFAULT_SETTINGS: Settings = {
  model: 'auto',
  quality: '',
  system: '',
  temperature: '',
  top_p: '',
  max_tokens: '',
  seed: '',
  cache: '',
  logprobs: false,
}

export interface Preferences {
  theme: 'system' | 'light' | 'dark'
  language: 'en' | 'zh'
  keepsHistory: boolean
}

const CHATS = 'fenhe.conversations'
const PREFERENCES = 'fenhe.preferences'
export const FORMAT = 'fenhe-conversations-1'

export function readPreferences(): Preferences {
  const language = navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en'
  return { theme: 'system', language, keepsHistory: true, ...(read(PREFERENCES) as Partial<Preferences> | null) }
}

export function keepPreferences(preferences: Preferences): void {
  write(PREFERENCES, preferences)
}

export function readConversations(): Conversation[] {
  return conversationsIn(read(CHATS))
}

/** False where the browser has no room left, or allows no storage. */
export function keepConversations(conversations: Conversation[]): boolean {
  return write(CHATS, { format: FORMAT, conversations })
}

export function forgetConversations(): void {
  try {
    localStorage.removeItem(CHATS)
  } catch {
    // Nothing was kept where there is no storage.
  }
}

/** Conversations of a file or of storage; what is none is left out. */
export function conversationsIn(value: unknown): Conversation[] {
  const list = (value as { conversations?: unknown } | null)?.conversations
  return Array.isArray(list) ? list.flatMap((one) => asConversation(one) ?? []) : []
}

function asConversation(value: unknown): Conversation | null {
  const one = value as Partial<Conversation> | null
  if (typeof one?.id !== 'string' || typeof one.title !== 'string' || !Array.isArray(one.turns)) return null
  const turns = one.turns.filter(isTurn)
  const settings = { ...DEFAULT_SETTINGS, ...textsOf(one.settings) }
  return { id: one.id, title: one.title, changed: Number(one.changed) || 0, turns, settings }
}

function isTurn(value: unknown): value is Turn {
  const turn = value as Partial<Turn> | null
  return (turn?.role === 'user' || turn?.role === 'assistant') && typeof turn.text === 'string'
}

function textsOf(value: unknown): Partial<Settings> {
  const settings = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const known = Object.entries(DEFAULT_SETTINGS).filter(([name, usual]) => typeof settings[name] === typeof usual)
  return Object.fromEntries(known.map(([name]) => [name, settings[name]]))
}

function read(name: string): unknown {
  try {
    return JSON.parse(localStorage.getItem(name) ?? 'null')
  } catch {
    return null
  }
}

function write(name: string, value: unknown): boolean {
  try {
    localStorage.setItem(name, JSON.stringify(value))
    return true
  } catch {
    return false
  }
}
