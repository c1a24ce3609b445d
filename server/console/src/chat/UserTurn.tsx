import { useState } from 'preact/hooks'
import type { Turn } from '../kept'
import { useText } from '../text'

export function UserTurn({ turn, canEdit, onEdit }: { turn: Turn; canEdit: boolean; onEdit: (text: string) => void }) {
  const t = useText()
  const [draft, setDraft] = useState<string | null>(null)
  const submit = (event: Event) => {
    event.preventDefault()
    if (draft === null || !draft.trim()) return
    setDraft(null)
    onEdit(draft)
  }
  if (draft !== null) {
    return (
      <form class="turn user editing" onSubmit={submit}>
        <textarea
          aria-label={t.edit}
          value={draft}
          rows={Math.min(12, draft.split('\n').length + 1)}
          autofocus
          onInput={(event) => setDraft(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === 'Escape') setDraft(null)
            if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event)
          }}
        />
        <div class="row end">
          <button type="button" class="quiet" onClick={() => setDraft(null)}>
            {t.cancel}
          </button>
          <button type="submit" class="primary">
            {t.sendAgain}
          </button>
        </div>
      </form>
    )
  }
  return (
    <article class="turn user" aria-label={t.you}>
      <div class="said">{turn.text}</div>
      {turn.attachments?.map((one) => (
        <span class="chip" key={one.name}>
          {one.name} · {t.characters(one.text.length)}
        </span>
      ))}
      {canEdit && (
        <div class="actions">
          <button type="button" class="quiet" onClick={() => setDraft(turn.text)}>
            {t.edit}
          </button>
        </div>
      )}
    </article>
  )
}
