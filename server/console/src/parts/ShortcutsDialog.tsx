import { useText } from '../text'
import { Dialog } from './Dialog'

export function ShortcutsDialog({ onClose }: { onClose: () => void }) {
  const t = useText()
  return (
    <Dialog title={t.shortcuts} onClose={onClose}>
      <dl class="keys">
        {t.shortcutList.map(([keys, meaning]) => (
          <div key={keys}>
            <dt>
              <kbd>{keys}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  )
}
