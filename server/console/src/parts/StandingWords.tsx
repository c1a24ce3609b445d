import { useText } from '../text'
import type { Standing } from '../wire'

/** Whether default routing takes a path, who decided that, and why: the controller's sentences are English. */
export function StandingWords({ standing }: { standing: Standing }) {
  const t = useText()
  const { is_open, decided_by, reason } = standing
  return (
    <p class="standing">
      <span class={is_open ? undefined : 'bad'}>{t.standing(is_open, decided_by)}</span>
      {reason && (
        <span class="soft small" lang={decided_by === 'controller' ? 'en' : undefined}>
          {reason}
        </span>
      )}
    </p>
  )
}
