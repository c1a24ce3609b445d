import { StandingWords } from '../parts/StandingWords'
import { Strip } from '../parts/Strip'
import { type Text, useText } from '../text'
import type { Facts, Live, OnlineQuality, StudentFacts } from '../wire'
import { figureWords, isKnown } from './figureWords'
import { QualityPlots } from './QualityPlots'
import { type Use, usesOf } from './uses'

/** Module activation against quality on live traffic: a picture, the same as a table, and what changed lately. */
export function Online({ live, facts }: { live: Live; facts: Facts | null }) {
  const t = useText()
  const quality = live.online_quality
  const found = live.students.map((student) => {
    const own = facts?.students.find((one) => one.name === student.name)
    return { name: student.name, facts: own, uses: quality.mode === 'off' ? [] : usesOf(student, own, quality) }
  })
  return (
    <section class="card online" aria-labelledby="online">
      <h2 id="online">{t.onlineQuality}</h2>
      {found.every((one) => one.uses.length === 0) && <p class="soft">{t.notMeasuredYet}</p>}
      {found.map(
        (one) =>
          one.uses.length > 0 && (
            <div key={one.name}>
              {found.length > 1 && <h3>{one.name}</h3>}
              {one.facts && <QualityPlots facts={one.facts} uses={one.uses} least={quality.min_samples} />}
              <div class="scroller" tabIndex={0}>
                <UseTable student={one.facts} uses={one.uses} least={quality.min_samples} />
              </div>
            </div>
          ),
      )}
      <p class="soft small">
        {t.onlineModes[quality.mode]} {quality.held !== null && t.heldBecause(quality.held)}
      </p>
      <Changes quality={quality} />
    </section>
  )
}

function UseTable({ student, uses, least }: { student: StudentFacts | undefined; uses: Use[]; least: number }) {
  const t = useText()
  return (
    <table class="uses">
      <thead>
        <tr>
          <th scope="col">{t.task}</th>
          <th scope="col">{t.path}</th>
          <th scope="col">{t.compute}</th>
          <th scope="col">{t.requestShare}</th>
          <th scope="col">{t.kept}</th>
          <th scope="col">{t.floor}</th>
          <th scope="col">{t.agreement}</th>
          <th scope="col">{t.samples}</th>
          <th scope="col">{t.inRouting}</th>
        </tr>
      </thead>
      <tbody>
        {uses.map(({ task, path, head, compute, share, online, standing }) => (
          <tr key={`${task} ${path} ${head}`}>
            <th scope="row">{t.tasks[task] ?? task}</th>
            <td>
              <span class="cell">
                <Strip student={student} path={path} head={head} />
                {path}, {t.heads[head]}
              </span>
            </td>
            <td>{compute === null ? '–' : t.percent(compute)}</td>
            <td>{t.percent(share)}</td>
            <td class="figure">{online ? figureWords(t, online, least) : t.fewerSamples(least, 0)}</td>
            <td>{online ? t.percent(online.floor) : '–'}</td>
            <td>{online !== null && isKnown(online, least) ? t.percent(online.agreement ?? 0) : '–'}</td>
            <td>{t.count(Math.round(online?.num_samples ?? 0))}</td>
            <td>
              <StandingWords standing={standing} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

function Changes({ quality }: { quality: OnlineQuality }) {
  const t = useText()
  if (quality.changes.length === 0) return null
  return (
    <ul class="changes small">
      {quality.changes.slice(0, 8).map((one, index) => (
        <li key={index}>
          <time dateTime={new Date(one.at * 1000).toISOString()}>{t.clock(one.at)}</time>{' '}
          {t.tasks[one.task as keyof Text['tasks']] ?? one.task}, {one.path}: {t.changes[one.action] ?? one.action} –{' '}
          <span lang="en">{one.reason}</span>
        </li>
      ))}
    </ul>
  )
}
