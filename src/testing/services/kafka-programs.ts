/**
 * Apache Kafka as plain jars from Maven, with what makes it start in a second and a half: an archive of loaded classes,
 * and a template of a formatted data directory, which saves a whole run of Java. Built once, kept in the cache.
 */
import { cp, mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { cached } from './cache.ts'
import { onPath, run } from './commands.ts'
import { MillraceError } from '../../core/errors.ts'
import { findJava, type Java } from './java.ts'
import { kafkaProperties } from './kafka-properties.ts'
import { askKafka } from './kafka-protocol.ts'
import { freePort } from './ports.ts'
import { Keeper, ServerProcess } from './server-process.ts'

const VERSION = '4.4.0'
const CLUSTER_ID = 'bWlsbHJhY2UtdGVzdHMtMQ'
const CHECKPOINT = '00000000000000000000-0000000000.checkpoint'

const POM = `<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>millrace.testing</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>${VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.5</version></dependency>
  </dependencies>
  <build><plugins><plugin>
    <groupId>org.apache.maven.plugins</groupId>
    <artifactId>maven-dependency-plugin</artifactId>
    <version>3.8.1</version>
    <configuration><includeScope>runtime</includeScope><outputDirectory>\${project.basedir}/lib</outputDirectory></configuration>
  </plugin></plugins></build>
</project>
`

const LOGGING = `status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
`

/** A Kafka that can be run. */
export interface KafkaPrograms {
  readonly command: string
  /** What goes before the main class. */
  readonly javaArgs: readonly string[]
  readonly origin: string
  readonly version: string
  /** The metadata checkpoint of a formatted data directory. */
  readonly template: string
}

/** Finds Kafka in the cache, or fetches and prepares it, which takes half a minute once. */
export async function findKafka(): Promise<KafkaPrograms> {
  const java = await findJava()
  const home = await cached(`kafka-${VERSION}`, fetchJars)
  // An archive is refused when the jars' paths differ from those it was made with, so it is made where they stay, and
  // when Java differs, so that its version is in the name.
  const prepared = join(home, `prepared-java-${java.version}`)
  if (!(await stat(prepared).catch(() => undefined))) await prepare(java, home, prepared)
  return {
    command: java.command,
    javaArgs: [`-XX:SharedArchiveFile=${join(prepared, 'classes.jsa')}`, ...(await javaArgs(home))],
    origin: `Maven, Java ${java.version}`,
    template: join(prepared, CHECKPOINT),
    version: VERSION,
  }
}

/** Makes a data directory for a node, as Kafka's own formatting tool does. */
export async function formatData(programs: Pick<KafkaPrograms, 'template'>, data: string, node: number): Promise<void> {
  // Sound for a static quorum of voters only: then the checkpoint names no node, no port and no directory.
  const metadata = join(data, '__cluster_metadata-0')
  await mkdir(metadata, { recursive: true })
  await cp(programs.template, join(metadata, CHECKPOINT))
  const directory = randomBytes(16).toString('base64url')
  const lines = ['version=1', `cluster.id=${CLUSTER_ID}`, `node.id=${node}`, `directory.id=${directory}`]
  await writeFile(join(data, 'meta.properties'), `${lines.join('\n')}\n`)
}

async function fetchJars(draft: string): Promise<void> {
  const maven = await onPath('mvn')
  if (maven === undefined) throw new MillraceError('SERVICE_UNAVAILABLE', 'mvn is not on the PATH')
  await writeFile(join(draft, 'pom.xml'), POM)
  await writeFile(join(draft, 'log4j2.properties'), LOGGING)
  await run(maven, ['-B', '-ntp', '-q', 'dependency:copy-dependencies'], { cwd: draft, timeoutMs: 600_000 })
}

async function javaArgs(home: string): Promise<string[]> {
  const jars = (await readdir(join(home, 'lib'))).filter((name) => name.endsWith('.jar')).toSorted()
  return [
    '-Xmx256m',
    '-XX:+UseSerialGC',
    '-XX:TieredStopAtLevel=1',
    '-XX:-UsePerfData',
    `-Dlog4j2.configurationFile=${join(home, 'log4j2.properties')}`,
    '-cp',
    jars.map((name) => join(home, 'lib', name)).join(':'),
  ]
}

/** Formats a data directory with Kafka's tool and keeps its checkpoint; runs a broker on it and keeps its classes. */
async function prepare(java: Java, home: string, prepared: string): Promise<void> {
  const draft = `${prepared}.draft-${randomBytes(4).toString('hex')}`
  const archive = join(draft, 'classes.jsa')
  const scratch = join(draft, 'scratch')
  const data = join(scratch, 'data')
  await mkdir(scratch, { recursive: true })
  const keeper = new Keeper('KILL', scratch)
  try {
    const [port, controllerPort] = [await freePort(), await freePort()]
    const file = join(scratch, 'server.properties')
    await writeFile(file, kafkaProperties({ controllerPort, data, port }))
    const args = await javaArgs(home)
    const format = ['kafka.tools.StorageTool', 'format', '-t', CLUSTER_ID, '-c', file]
    await run(java.command, [...args, ...format], { cwd: scratch, timeoutMs: 120_000 })
    await cp(join(data, '__cluster_metadata-0', CHECKPOINT), join(draft, CHECKPOINT))
    const broker = await ServerProcess.start(
      {
        args: [`-XX:ArchiveClassesAtExit=${archive}`, ...args, 'kafka.Kafka', file],
        command: java.command,
        cwd: scratch,
        logFile: join(scratch, 'server.log'),
      },
      keeper,
    )
    await broker.ready('Kafka', 120_000, () => askKafka({ port }))
    broker.signal('SIGTERM')
    if (!(await broker.gone(60_000))) {
      broker.signal('SIGKILL')
      await broker.gone(10_000)
    }
    await rm(scratch, { recursive: true, force: true })
    await rename(draft, prepared)
  } catch (error) {
    if (!(await stat(prepared).catch(() => undefined))) throw error
  } finally {
    keeper.dismiss()
    await rm(draft, { recursive: true, force: true })
  }
}
