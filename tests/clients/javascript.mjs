// The JavaScript client of Kubernetes against a running lab.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as k8s from '@kubernetes/client-node';

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const custom = config.makeApiClient(k8s.CustomObjectsApi);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const namespace = 'default';
const vmi = 'rhel8-server-nfs';
const kubevirt = { group: 'kubevirt.io', version: 'v1', namespace };
const MAPS = `/api/v1/namespaces/${namespace}/configmaps`;

async function until(what, ask) {
  const end = Date.now() + 60_000;
  while (Date.now() < end) {
    const answer = await ask();
    if (answer) return answer;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`waited too long for ${what}`);
}

test('nodes are read', async () => {
  const { items } = await core.listNode();
  assert.ok(items.length >= 2);
  assert.ok(items[0].metadata.creationTimestamp instanceof Date);
});

test('config maps are made, patched and deleted', async () => {
  const body = { metadata: { name: 'js-map' }, data: { a: '1' } };
  await core.createNamespacedConfigMap({ namespace, body });
  await assert.rejects(core.createNamespacedConfigMap({ namespace, body }), { code: 409 });
  const name = 'js-map';
  const patched = await core.patchNamespacedConfigMap(
    { namespace, name, body: { data: { b: '2' } } },
    k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.StrategicMergePatch),
  );
  assert.deepEqual(patched.data, { a: '1', b: '2' });
  await core.patchNamespacedConfigMap({
    namespace, name, body: [{ op: 'remove', path: '/data/a' }],
  });
  const applied = await objects.patch(
    { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace }, data: { c: '3' } },
    undefined, undefined, 'js', true, k8s.PatchStrategy.ServerSideApply,
  );
  assert.deepEqual(applied.data, { b: '2', c: '3' });
  await core.deleteNamespacedConfigMap({ namespace, name });
  await assert.rejects(core.readNamespacedConfigMap({ namespace, name }), { code: 404 });
});

test('objects of any kind are found by discovery', async () => {
  const found = await objects.read({
    apiVersion: 'kubevirt.io/v1alpha3', kind: 'VirtualMachineInstance',
    metadata: { name: vmi, namespace },
  });
  assert.equal(found.status.phase, 'Running');
  const policy = {
    apiVersion: 'migrations.kubevirt.io/v1alpha1', kind: 'MigrationPolicy',
    metadata: { name: 'js-policy' }, spec: { selectors: {}, completionTimeoutPerGiB: 7 },
  };
  const made = await objects.create(policy);
  made.spec.completionTimeoutPerGiB = 8;
  assert.equal((await objects.replace(made)).spec.completionTimeoutPerGiB, 8);
  await objects.delete(policy);
});

test('an informer follows what comes, changes and goes', async () => {
  const seen = [];
  const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'js=informer' });
  const informer = k8s.makeInformer(config, MAPS, list, 'js=informer');
  for (const event of ['add', 'update', 'delete']) {
    informer.on(event, (object) => seen.push(`${event} ${object.metadata.name}`));
  }
  await informer.start();
  const name = 'js-followed';
  const body = { metadata: { name, labels: { js: 'informer' } } };
  await core.createNamespacedConfigMap({ namespace, body });
  await until('the addition', () => seen.includes(`add ${name}`));
  await core.patchNamespacedConfigMap({
    namespace, name, body: [{ op: 'add', path: '/data', value: { a: '1' } }],
  });
  await until('the change', () => seen.includes(`update ${name}`));
  // An object that leaves the selector is gone for who follows it.
  await core.patchNamespacedConfigMap({
    namespace, name, body: [{ op: 'remove', path: '/metadata/labels/js' }],
  });
  await until('the end', () => seen.includes(`delete ${name}`));
  await informer.stop();
  await core.deleteNamespacedConfigMap({ namespace, name });
  assert.deepEqual(seen, [`add ${name}`, `update ${name}`, `delete ${name}`]);
});

test('a machine moves, and a watch sees it', async () => {
  const plural = 'virtualmachineinstancemigrations';
  const before = await custom.getNamespacedCustomObject({
    ...kubevirt, plural: 'virtualmachineinstances', name: vmi,
  });
  const phases = [];
  const watch = new k8s.Watch(config);
  const path = `/apis/kubevirt.io/v1/namespaces/${namespace}/${plural}`;
  const ended = await watch.watch(path, {}, (type, object) => {
    const phase = object.status?.phase;
    if (object.metadata.name === 'js-move' && phase !== phases.at(-1)) phases.push(phase);
  }, () => {});
  const body = {
    apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachineInstanceMigration',
    metadata: { name: 'js-move' }, spec: { vmiName: vmi },
  };
  await custom.createNamespacedCustomObject({ ...kubevirt, plural, body });
  await until('the move', () => phases.includes('Succeeded') || phases.includes('Failed'));
  ended.abort();
  assert.equal(phases.at(-1), 'Succeeded', phases.join());
  const after = await custom.getNamespacedCustomObject({
    ...kubevirt, plural: 'virtualmachineinstances', name: vmi,
  });
  assert.notEqual(after.status.nodeName, before.status.nodeName);
  await custom.deleteNamespacedCustomObject({ ...kubevirt, plural, name: 'js-move' });
});

test('a refusal says what is wrong', async () => {
  const body = {
    apiVersion: 'kubevirt.io/v1', kind: 'VirtualMachineInstanceMigration',
    metadata: { name: 'js-nobody' }, spec: { vmiName: 'nobody' },
  };
  const plural = 'virtualmachineinstancemigrations';
  await assert.rejects(
    custom.createNamespacedCustomObject({ ...kubevirt, plural, body }),
    (error) => /the VMI \\*"default\/nobody\\*" does not exist/.test(error.body ?? error.message),
  );
});
