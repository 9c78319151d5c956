/** A certificate authority that lives as long as a test file, and what it signs. */
import 'reflect-metadata' // x509 wants it first
import type { webcrypto } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import {
  BasicConstraintsExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  type X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509'

const ALGORITHM = { hash: 'SHA-256', name: 'ECDSA', namedCurve: 'P-256' }
const DAY_MS = 86_400_000

/** A server's certificate with its key, both as PEM. */
export interface Certificate {
  readonly cert: string
  readonly key: string
}

/** Signs certificates for servers. */
export class CertificateAuthority {
  /** Its own certificate, as PEM. */
  readonly cert: string
  readonly #certificate: X509Certificate
  readonly #keys: webcrypto.CryptoKeyPair

  static async make(): Promise<CertificateAuthority> {
    const keys = await newKeys()
    const certificate = await X509CertificateGenerator.createSelfSigned({
      extensions: [
        new BasicConstraintsExtension(true, undefined, true),
        new KeyUsagesExtension(KeyUsageFlags.keyCertSign, true),
      ],
      keys,
      name: 'CN=Millrace tests',
      notAfter: new Date(Date.now() + DAY_MS),
      notBefore: new Date(Date.now() - 10 * DAY_MS),
      signingAlgorithm: ALGORITHM,
    })
    return new CertificateAuthority(certificate, keys)
  }

  private constructor(certificate: X509Certificate, keys: webcrypto.CryptoKeyPair) {
    this.#certificate = certificate
    this.#keys = keys
    this.cert = certificate.toString('pem')
  }

  /** A certificate for a host; one that has expired was good until yesterday. */
  async sign(host: string, { expired = false } = {}): Promise<Certificate> {
    const keys = await newKeys()
    const certificate = await X509CertificateGenerator.create({
      extensions: [new SubjectAlternativeNameExtension([{ type: 'dns', value: host }])],
      issuer: this.#certificate.subject,
      notAfter: new Date(Date.now() + (expired ? -DAY_MS : DAY_MS)),
      notBefore: new Date(Date.now() - 2 * DAY_MS),
      publicKey: keys.publicKey,
      signingAlgorithm: ALGORITHM,
      signingKey: this.#keys.privateKey,
      subject: `CN=${host}`,
    })
    const key = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
    return { cert: certificate.toString('pem'), key: PemConverter.encode(key, 'PRIVATE KEY') }
  }
}

/** Writes it where a server reads it from. */
export async function certificateFiles({ cert, key }: Certificate): Promise<{
  readonly certFile: string
  readonly keyFile: string
  readonly remove: () => Promise<void>
}> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'millrace-tls-'))
  const certFile = path.join(folder, 'server.crt')
  const keyFile = path.join(folder, 'server.key')
  await Promise.all([writeFile(certFile, cert), writeFile(keyFile, key, { mode: 0o600 })])
  return { certFile, keyFile, remove: () => rm(folder, { force: true, recursive: true }) }
}

function newKeys(): Promise<webcrypto.CryptoKeyPair> {
  return crypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
}
