import type { Settings } from '../kept'
import { useText } from '../text'
import { type Model, QUALITIES } from '../wire'

export interface SettingsProps {
  settings: Settings
  change: (settings: Settings) => void
  models: Model[]
  onClose: () => void
}

type TextField = 'temperature' | 'top_p' | 'max_tokens' | 'seed'
const NUMBERS: [TextField, Record<string, string>][] = [
  ['temperature', { min: '0', max: '2', step: '0.1' }],
  ['top_p', { min: '0.01', max: '1', step: '0.01' }],
  ['max_tokens', { min: '1', step: '1' }],
  ['seed', { step: '1' }],
]

export function SettingsPanel({ settings, change, models, onClose }: SettingsProps) {
  const t = useText()
  const set = (part: Partial<Settings>) => change({ ...settings, ...part })
  const recommended = models.find((one) => one.id === settings.model)?.fenhe.recommended_sampling ?? {}
  return (
    <form class="settings" aria-label={t.settings} onSubmit={(event) => event.preventDefault()}>
      <label class="wide">
        {t.systemPrompt}
        <textarea rows={2} value={settings.system} onInput={(event) => set({ system: event.currentTarget.value })} />
      </label>
      <label>
        {t.model}
        <ModelSelect models={models} value={settings.model} onChange={(model) => set({ model })} />
      </label>
      <label>
        {t.quality}
        <select
          value={settings.quality}
          onChange={(event) => set({ quality: event.currentTarget.value as Settings['quality'] })}
        >
          <option value="">{t.qualityDefault}</option>
          {QUALITIES.map((one) => (
            <option key={one} value={one}>
              {t.qualities[one]}
            </option>
          ))}
        </select>
      </label>
      {NUMBERS.map(([name, bounds]) => (
        <label key={name}>
          {t.sampling[name]}
          <input
            type="number"
            {...bounds}
            value={settings[name]}
            placeholder={placeholder(recommended[name], t.automatic)}
            onInput={(event) => set({ [name]: event.currentTarget.value })}
          />
        </label>
      ))}
      <label>
        {t.cacheUse}
        <select
          value={settings.cache}
          onChange={(event) => set({ cache: event.currentTarget.value as Settings['cache'] })}
        >
          <option value="">{t.automatic}</option>
          <option value="yes">{t.yes}</option>
          <option value="no">{t.no}</option>
        </select>
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={settings.logprobs}
          onChange={(event) => set({ logprobs: event.currentTarget.checked })}
        />
        {t.askProbabilities}
      </label>
      <div class="row end wide">
        <button type="button" class="quiet" onClick={onClose}>
          {t.close}
        </button>
      </div>
    </form>
  )
}

function placeholder(value: number | null | undefined, automatic: string): string {
  return value === null || value === undefined ? automatic : `${automatic}: ${value}`
}

export interface ModelSelectProps {
  models: Model[]
  value: string
  onChange: (id: string) => void
}

export function ModelSelect({ models, value, onChange }: ModelSelectProps) {
  const ids = models.map((one) => one.id)
  const all = ids.includes(value) ? ids : [value, ...ids]
  return (
    <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      {all.map((id) => (
        <option key={id} value={id}>
          {id}
        </option>
      ))}
    </select>
  )
}
