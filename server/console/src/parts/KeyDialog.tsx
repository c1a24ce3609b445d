import { useState } from 'preact/hooks'
import { currentKeys, setKeys } from '../api'
import { useText } from '../text'
import { Dialog } from './Dialog'

export interface KeyDialogProps {
  which: 'api' | 'admin'
  hasAdmin: boolean
  onClose: () => void
}

export function KeyDialog({ which, hasAdmin, onClose }: KeyDialogProps) {
  const t = useText()
  const [api, setApi] = useState(currentKeys().api)
  const [admin, setAdmin] = useState(currentKeys().admin)
  const submit = (event: Event) => {
    event.preventDefault()
    setKeys({ api: api.trim(), admin: admin.trim() })
    onClose()
  }
  return (
    <Dialog title={t.keysTitle} onClose={onClose}>
      <form onSubmit={submit} autocomplete="off">
        <p>{t.keysKept}</p>
        <label>
          {t.apiKey}
          <input
            type="password"
            autocomplete="off"
            name="api"
            value={api}
            autofocus={which === 'api'}
            onInput={(event) => setApi(event.currentTarget.value)}
          />
        </label>
        <label>
          {t.adminKey}
          <input
            type="password"
            autocomplete="off"
            name="admin"
            value={admin}
            disabled={!hasAdmin}
            autofocus={which === 'admin'}
            onInput={(event) => setAdmin(event.currentTarget.value)}
          />
        </label>
        {!hasAdmin && <p class="soft">{t.noAdmin}</p>}
        <div class="row end">
          <button type="button" class="quiet" onClick={onClose}>
            {t.cancel}
          </button>
          <button type="submit" class="primary">
            {t.useKeys}
          </button>
        </div>
      </form>
    </Dialog>
  )
}
