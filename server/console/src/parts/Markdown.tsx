import type { Token, Tokens } from 'marked'
import { memo, useSyncExternalStore } from 'preact/compat'
import { useMemo } from 'preact/hooks'
import { blocksOf, hasMath, htmlOf, onMath } from '../markdown'
import { CopyButton } from './CopyButton'

/** Only the blocks whose source has changed are made anew: while an answer streams in, that is the last one. */
export function Markdown({ text }: { text: string }) {
  const isMathThere = useSyncExternalStore(onMath, hasMath)
  const blocks = useMemo(() => blocksOf(text).filter((token) => token.type !== 'space'), [text])
  return (
    <div class="markdown">
      {blocks.map((token, index) => (
        <Block key={index} token={token} raw={token.raw} isMathThere={isMathThere} />
      ))}
    </div>
  )
}

interface BlockProps {
  token: Token
  raw: string
  isMathThere: boolean
}

const Block = memo(
  function Block({ token }: BlockProps) {
    if (token.type === 'code') return <CodeBlock token={token as Tokens.Code} />
    const tag = token.type === 'table' ? 'scroller' : 'block'
    return (
      <div
        class={tag}
        tabIndex={token.type === 'table' ? 0 : undefined}
        dangerouslySetInnerHTML={{ __html: htmlOf(token) }}
      />
    )
  },
  (before, after) => before.raw === after.raw && before.isMathThere === after.isMathThere,
)

function CodeBlock({ token }: { token: Tokens.Code }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{token.lang || ''}</span>
        <CopyButton text={token.text} />
      </figcaption>
      <pre tabIndex={0}>
        <code>{token.text}</code>
      </pre>
    </figure>
  )
}
