import { useRef, useState } from 'preact/hooks'
import { conversationsIn, FORMAT, type Preferences } from '../kept'
import { useText } from '../text'
import type { Conversations } from './useConversations'

export interface ChatListProps {
  chats: Conversations
  preferences: Preferences
  prefer: (change: Partial<Preferences>) => void
  isBusy: boolean
  onDone: () => void
}

export function ChatList({ chats, preferences, prefer, isBusy, onDone }: ChatListProps) {
  const t = useText()
  const files = useRef<HTMLInputElement>(null)
  const [told, setTold] = useState('')
  const open = (id: string | null) => {
    chats.open(id)
    onDone()
  }
  const bring = async (file: File | undefined) => {
    if (file === undefined) return
    const found = conversationsIn(await file.text().then(JSON.parse).catch(() => null))
    chats.add(found)
    setTold(found.length ? t.imported(found.length) : t.notImported(file.name))
    if (files.current !== null) files.current.value = ''
  }
  return (
    <aside class="list" aria-label={t.history}>
      <button type="button" class="new" onClick={() => open(null)}>
        {t.newChat}
      </button>
      <ul>
        {chats.list.map((one) => (
          <li key={one.id} class={one.id === chats.current.id ? 'current' : ''}>
            <button type="button" aria-current={one.id === chats.current.id} onClick={() => open(one.id)}>
              {one.title || t.newChat}
            </button>
            <button
              type="button"
              class="remove"
              disabled={isBusy}
              aria-label={t.removeChat(one.title)}
              onClick={() => chats.remove(one.id)}
            >
              ×
            </button>
          </li>
        ))}
      </ul>
      <div class="foot">
        <label class="check">
          <input
            type="checkbox"
            checked={preferences.keepsHistory}
            onChange={(event) => prefer({ keepsHistory: event.currentTarget.checked })}
          />
          {t.keepHistory}
        </label>
        <div class="row">
          <button type="button" class="quiet" disabled={chats.list.length === 0} onClick={() => save(chats.list)}>
            {t.export}
          </button>
          <button type="button" class="quiet" onClick={() => files.current?.click()}>
            {t.import}
          </button>
          <input
            ref={files}
            type="file"
            class="offscreen"
            tabIndex={-1}
            aria-label={t.import}
            accept="application/json,.json"
            onChange={(event) => bring(event.currentTarget.files?.[0])}
          />
        </div>
        <p class="soft" role="status">
          {told}
        </p>
      </div>
    </aside>
  )
}

function save(conversations: unknown): void {
  const text = JSON.stringify({ format: FORMAT, conversations }, null, 1)
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }))
  link.download = 'fenhe-conversations.json'
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}
