/** Which tokens two answers have in common, in order: a longest common subsequence behind their common beginning. */

export interface Mark {
  text: string
  isShared: boolean
}

/** Tokens in a row that are all shared, or none of them. */
export interface Run {
  texts: string[]
  isShared: boolean
}

export interface Alignment {
  left: Mark[]
  right: Mark[]
  numAlike: number
  numShared: number
}

const MOST = 400

export function align(left: string[], right: string[]): Alignment {
  let numAlike = 0
  while (numAlike < Math.min(left.length, right.length) && left[numAlike] === right[numAlike]) numAlike++
  const marks = [left, right].map((tokens) =>
    tokens.map((text, index) => ({ text, isShared: index < numAlike })),
  ) as [Mark[], Mark[]]
  const rest = [marks[0].slice(numAlike, numAlike + MOST), marks[1].slice(numAlike, numAlike + MOST)] as const
  for (const [one, other] of commonOf(rest[0], rest[1])) {
    one.isShared = true
    other.isShared = true
  }
  return { left: marks[0], right: marks[1], numAlike, numShared: marks[0].filter((mark) => mark.isShared).length }
}

export function runsOf(marks: Mark[]): Run[] {
  const runs: Run[] = []
  for (const { text, isShared } of marks) {
    const last = runs.at(-1)
    if (last?.isShared === isShared) last.texts.push(text)
    else runs.push({ texts: [text], isShared })
  }
  return runs
}

function commonOf(left: Mark[], right: Mark[]): [Mark, Mark][] {
  const width = right.length + 1
  const best = new Uint16Array((left.length + 1) * width)
  const at = (i: number, j: number) => best[i * width + j] ?? 0
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      best[i * width + j] =
        left[i]?.text === right[j]?.text ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1))
    }
  }
  const pairs: [Mark, Mark][] = []
  let i = 0
  let j = 0
  while (i < left.length && j < right.length) {
    const one = left[i] as Mark
    const other = right[j] as Mark
    if (one.text === other.text) {
      pairs.push([one, other])
      i++
      j++
    } else if (at(i + 1, j) >= at(i, j + 1)) i++
    else j++
  }
  return pairs
}
