import { createContext } from 'preact'
import { useContext } from 'preact/hooks'
import { en } from './en'
import { zh } from './zh'

export type Text = typeof en
export type Language = 'en' | 'zh'

export const DICTIONARIES: Record<Language, Text> = { en, zh }
export const TextContext = createContext<Text>(en)

export function useText(): Text {
  return useContext(TextContext)
}
