// npm's `ollama`, unmodified, over its main flows: node npm_client.mjs ADDRESS
import assert from 'node:assert/strict'
import { Ollama } from 'ollama'

const client = new Ollama({ host: process.argv[2] })
const messages = [{ role: 'user', content: 'What is DNS?' }]
const options = { temperature: 0, num_predict: 24 }

const whole = await client.chat({ model: 'mead', messages, options })
assert.ok(whole.message.content && whole.eval_count > 0 && whole.done)
let text = ''
let last
for await (const part of await client.chat({ model: 'mead', messages, options, stream: true })) {
  text += part.message.content
  last = part
}
assert.equal(text, whole.message.content)
assert.equal(last.done, true)

const said = await client.generate({ model: 'mead', prompt: 'What is DNS?', options })
assert.equal(said.response, text)
const form = { type: 'object', properties: { port: { type: 'integer' } }, required: ['port'] }
const held = await client.chat({ model: 'mead', messages, format: form, options })
assert.equal(typeof JSON.parse(held.message.content).port, 'number')

const embedded = await client.embed({ model: 'tiny-embed', input: ['a b', 'b'] })
assert.equal(embedded.embeddings.length, 2)
assert.ok((await client.list()).models.some((model) => model.name === 'mead:latest'))
assert.ok((await client.show({ model: 'mead' })).capabilities.includes('completion'))
assert.ok((await client.ps()).models.length > 0)

const steps = []
for await (const step of await client.create({ model: 'npm', from: 'mead', system: 'Be brief.', stream: true })) {
  steps.push(step.status)
}
assert.equal(steps.at(-1), 'success')
await client.copy({ source: 'npm', destination: 'npm2' })
await client.delete({ model: 'npm' })
await client.delete({ model: 'npm2' })

await assert.rejects(client.chat({ model: 'nothing', messages }), /not found/)
await assert.rejects(client.pull({ model: 'llama3' }), /cannot download/)
console.log('all is well')
