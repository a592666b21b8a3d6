"""What test_collectives.py does to p.grad: lines of Python in the names that its sides give them."""

from factored import lines

# Each call once and, where it says so, once more with its Work waited for. Ordinary tensors are part of the result.
CALLS = lines("""
    dist.all_reduce(g, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.AVG, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.MAX, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.MIN, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.PRODUCT, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.BOR)
    dist.all_reduce(p.grad, group=group, async_op=later)
    dist.all_reduce(g.detach(), async_op=later)
    dist.all_reduce(g.data, async_op=later)
    dist.all_reduce(g.view(-1), async_op=later)
    dist.all_reduce(g[2:4], async_op=later)
    dist.all_reduce(g.clone(), async_op=later)
    dist.all_reduce(g.t(), async_op=later)
    dist.all_reduce_coalesced([g, h, v], async_op=later)
    dist.all_reduce_coalesced([d, h, e], async_op=later)
    dist.all_reduce_coalesced([v, g], op=dist.ReduceOp.MAX, async_op=later)
    dist.broadcast(g, src=0, async_op=later)
    dist.broadcast(g, group_src=1, async_op=later)
    dist.broadcast(d if rank else g, src=0, async_op=later)
    dist.broadcast(d if rank else g, src=1, async_op=later)
    dist.reduce(g, dst=0, async_op=later)
    dist.reduce(g, dst=1, op=dist.ReduceOp.MAX, async_op=later)
    dist.reduce(d if rank else g, dst=0, async_op=later)
    dist.reduce(d if rank else g, dst=1, async_op=later)

    dist.all_gather([d, e], g, async_op=later)
    dist.all_gather([g, h], d, async_op=later)
    dist.all_gather([g, d], h, async_op=later)
    dist.all_gather([d, h], e, async_op=later)
    dist.all_gather([g, h], g, async_op=later)
    dist.all_gather([g, g.clone()], h, async_op=later)
    dist.all_gather([g[0], h[1]], g[2], async_op=later)
    dist.all_gather([g, h], v, async_op=later)
    dist.all_gather([d, e] if rank else [g, h], e if rank else h, async_op=later)
    dist.all_gather_into_tensor(both, g, async_op=later)
    dist.all_gather_into_tensor(both.view(2, OUT, IN), g, async_op=later)
    dist.all_gather_into_tensor(g, half, async_op=later)
    dist.all_gather_into_tensor(g, h[:4], async_op=later)
    dist.all_gather_single(both, g, async_op=later)
    dist.all_gather_single(g, half, async_op=later)
    dist._all_gather_base(g, half, async_op=later)
    dist.all_gather_coalesced([[g, h], [d, e]], [d, e], async_op=later)
    dist.all_gather_coalesced([[d, e], [d + 1, e + 1]], [g, h], async_op=later)
    dist.all_gather_coalesced([[g, d], [e, h]], [h, e], async_op=later)
    dist.gather(g, [d, e] if rank == 0 else None, async_op=later)
    dist.gather(d, [g, h] if rank == 0 else None, async_op=later)
    dist.gather(h, [g, e] if rank == 1 else None, dst=1, async_op=later)
    dist.gather(g, [g, h] if rank == 0 else None, async_op=later)
    dist.gather_single(g, both if rank == 0 else None, async_op=later)
    dist.gather_single(half, g if rank == 0 else None, async_op=later)
    dist.gather_into_tensor(half, g if rank == 0 else None, async_op=later)

    dist.scatter(g, [d, e] if rank == 0 else None, async_op=later)
    dist.scatter(g, [h, d] if rank == 1 else None, src=1, async_op=later)
    dist.scatter(d, [g.view(OUT, IN), h.view(OUT, IN)] if rank == 0 else None, async_op=later)
    dist.reduce_scatter(g, [d, e], async_op=later)
    dist.reduce_scatter(g, [h, d], op=dist.ReduceOp.MAX, async_op=later)
    dist.reduce_scatter(half, list(g.chunk(2)), async_op=later)
    dist.reduce_scatter_tensor(g, both, async_op=later)
    dist.reduce_scatter_tensor(half, g, async_op=later)
    dist.reduce_scatter_tensor(g[:4], h, async_op=later)
    dist.reduce_scatter_single(g, both, async_op=later)
    dist.reduce_scatter_single(half, g, async_op=later)
    dist._reduce_scatter_base(half, g, async_op=later)
    dist.all_to_all([g, h], [d, e], async_op=later)
    dist.all_to_all([d, e], [g, h], async_op=later)
    dist.all_to_all([g, d], [e, h], async_op=later)
    dist.all_to_all([d, e] if rank else [g, h], [h, g] if rank else [e, d], async_op=later)
    dist.all_to_all_single(g, d, async_op=later)
    dist.all_to_all_single(d, g, async_op=later)
    dist.all_to_all_single(g, h, [3, 5] if rank else [5, 3], [3, 5] if rank else [5, 3], async_op=later)
    dist.all_to_all_single(g.view(-1), h.view(-1), async_op=later)

    dist.recv(g, src=0) if rank else dist.send(g, dst=1)
    dist.recv(g) if rank else dist.send(h, dst=1)
    dist.recv(d, src=0) if rank else dist.send(g, dst=1)
    dist.recv(g, src=0, tag=3) if rank else dist.send(d, dst=1, tag=3)
    dist.irecv(g, src=0) if rank else dist.isend(h, dst=1)
    dist.irecv(g) if rank else dist.isend(d, dst=1)
    dist.irecv(d, src=0) if rank else dist.isend(g, dst=1)
    dist.send(g, dst=rank)
""")

# As they stand:
LINES = lines("""
    w = dist.all_reduce(g, async_op=True); w.wait(); w.result()
    w = dist.all_reduce(g, async_op=True); w.get_future().wait()
    w = dist.all_reduce(g, async_op=True); w.get_future().then(lambda f: f.value()[0].mul_(2)).wait(); g
    w = [dist.all_reduce(t, async_op=True) for t in (g, h, v)]; [x.wait() for x in w]
    w = dist.all_reduce(p.grad, async_op=True); p.grad = None; w.wait(); g
    w = dist.all_reduce(p.grad, async_op=True); opt.zero_grad(); w.wait(); backward(4); g
    w = dist.all_gather([g, h], d, async_op=True); opt.zero_grad(); w.wait(); g, h
    dist.all_reduce(g); dist.all_reduce(g); g.div_(4)
    dist.all_reduce(g); opt.step(); dist.all_reduce(p.grad)
    [dist.all_reduce(x.grad.div_(2)) for x in model.parameters()] and None
    with dist._coalescing_manager(): dist.all_reduce(g); dist.all_reduce(h)
    c = dist._coalescing_manager(async_ops=True); w = c.__enter__(); dist.all_reduce(g); dist.all_reduce(h); c.__exit__(None, None, None); w.wait()
    with dist._coalescing_manager(): dist.all_gather_into_tensor(g, half); dist.all_gather_into_tensor(both, h)
    with dist._coalescing_manager(): dist.reduce_scatter_tensor(half, g); dist.reduce_scatter_tensor(h, both)
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.isend, g, other), dist.P2POp(dist.irecv, h, other)])]
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.irecv, g, other), dist.P2POp(dist.isend, d, other)])]
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.isend, g, other), dist.P2POp(dist.irecv, d, other)])], d
    dist._broadcast_coalesced(group, [g, h, v], 1 << 20, 0)
    dist._broadcast_coalesced(group, [d, h], 100, 1); d
    dist._verify_params_across_processes(group, [g, h], None)
    t = torch._utils._flatten_dense_tensors([g, h]); dist.all_reduce(t); t
    t = torch._utils._flatten_dense_tensors([g, h]); dist.all_reduce(t); torch._foreach_copy_([g, h], list(torch._utils._unflatten_dense_tensors(t, [g, h])))
    t = (g != 0).any(); dist.all_reduce(t, op=dist.ReduceOp.MAX); t

    o = [None, None]; dist.all_gather_object(o, g); o
    o = [g, rank] if rank == 0 else [None, None]; dist.broadcast_object_list(o, src=0); o
    o = [None, None] if rank == 0 else None; dist.gather_object({"g": g}, o); o
    o = [None]; dist.scatter_object_list(o, [g, h] if rank == 0 else None); o
    o = [None]; dist.recv_object_list(o, src=0) if rank else dist.send_object_list([g], dst=1); o

    group.allreduce([g]).wait()
    group.allreduce(g, dist.ReduceOp.MAX).wait()
    group.allreduce_coalesced([g, h, d]).wait(); d
    o = dist.BroadcastOptions(); o.rootRank = 1; group.broadcast([g], o).wait()
    group.broadcast(g, 0).wait()
    o = dist.ReduceOptions(); o.rootRank = 1; group.reduce([g], o).wait()
    group.reduce(g, 1, dist.ReduceOp.SUM).wait()
    group.allgather([[d, e]], [g]).wait(); d, e
    group.allgather([[g, h]], [d]).wait()
    group.allgather([g, d], h).wait(); d
    group.allgather_coalesced([[g, h], [d, e]], [e, d]).wait(); d, e
    group.allgather_into_tensor_coalesced([both, g], [h, half]).wait(); both
    group._allgather_base(g, half).wait()
    group._allgather_base(both, g).wait(); both
    group.gather([[d, e]] if rank == 0 else [], [g]).wait(); d, e
    group.gather([[g, h]] if rank == 0 else [], [d]).wait()
    group.scatter([g], [[d, e]] if rank == 0 else []).wait()
    group.scatter([g], [[h, d]] if rank == 0 else []).wait()
    group.reduce_scatter([g], [[d, e]]).wait()
    group.reduce_scatter([g], [[h, d]]).wait()
    group._reduce_scatter_base(half, g).wait(); half
    group._reduce_scatter_base(g, both).wait()
    group.reduce_scatter_tensor_coalesced([half, g], [h, both]).wait(); half
    group.alltoall([g, d], [e, h]).wait(); d
    group.alltoall_base(g, h, [], []).wait()
    group.alltoall_base(d, g, [], []).wait(); d
    (group.recv([g], 0, 0) if rank else group.send([g], 1, 0)).wait()
    (group.recv([d], 0, 0) if rank else group.send([g], 1, 0)).wait(); d
    (group.recv_anysource([g], 0) if rank else group.send([d], 1, 0)).wait()

    backend.allreduce_coalesced([g, h]).wait()
    backend.allgather([[d, e]], [g]).wait(); d, e
    backend.allgather([[g, h]], [d]).wait()
    backend.allgather_coalesced([[g, h], [d, e]], [e, d]).wait(); d, e
    backend._allgather_base(both, g).wait(); both
    backend._allgather_base(g, half).wait()
    backend.gather([[d, e]] if rank == 0 else [], [g]).wait(); d, e
    backend.gather([[g, h]] if rank == 0 else [], [d]).wait()
    backend._reduce_scatter_base(g, both).wait()
    backend.alltoall([g, h], [d, e]).wait()
    backend.alltoall([d, e], [g, h]).wait(); d, e

    functional.wait_tensor(functional.all_reduce(g, "sum", group))
    functional.all_reduce(g, "avg", group).mul_(2)
    functional.wait_tensor(functional.all_reduce_coalesced([g, d, h], "max", group)[2])
    functional.wait_tensor(functional.broadcast(g, 1, group))
    functional.wait_tensor(functional.all_gather_tensor(g, 0, group))
    functional.wait_tensor(functional.all_gather_tensor(g, 1, group))
    functional.wait_tensor(functional.all_gather_tensor_autograd(g, 0, group))
    functional.wait_tensor(functional.all_gather_into_tensor_coalesced([g, d], group)[0])
    functional.wait_tensor(functional.reduce_scatter_tensor(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_tensor(g[:, :8], "sum", 1, group))
    functional.wait_tensor(functional.reduce_scatter_tensor_autograd(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_tensor_coalesced([d, g], "sum", [0, 0], group)[1])
    functional.wait_tensor(functional.all_to_all_single(g, None, None, group))
    functional.wait_tensor(functional.all_to_all_single_autograd(g, [4, 4], [4, 4], group))
    functional.wait_tensor(functional.permute_tensor(g.view(-1), [1, 0], group))
    functional.wait_tensor(g)
    functional.wait_tensor(functional.all_gather_single(g, 0, group))
    functional.wait_tensor(functional.all_gather_single_autograd(g, 0, group))
    functional.wait_tensor(functional.all_gather_single_coalesced([g, d], group)[0])
    functional.wait_tensor(functional.reduce_scatter_single(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_single_autograd(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_single_coalesced([d, g], "sum", [0, 0], group)[1])
    functional.irecv_inplace(g, 0, group=group).wait() if rank else functional.isend_inplace(d, 1, group=group).wait()
    functional.irecv_inplace(d, 0, group=group).wait() if rank else functional.isend_inplace(g, 1, group=group).wait(); d
    [t.wait() for t in functional.batch_p2p_ops_inplace(["isend", "irecv"], [other, other], [0, 0], [g, h], name)]
    functional.all_reduce_inplace(g, "sum", group)
    functional.all_gather_tensor_inplace(g, half, group)
    functional.all_gather_tensor_inplace(both, g, group); both
    functional.reduce_scatter_inplace(g, [d, e], "sum", group)
    functional.reduce_scatter_inplace(g, [h, d], "max", group)
    functional.reduce_scatter_inplace(half, list(g.chunk(2)), "sum", group); half
    functional.reduce_scatter_tensor_inplace(half, g, "sum", group); half
    functional.reduce_scatter_tensor_inplace(g, both, "sum", group)
    functional.all_to_all_inplace(g, h, None, None, group)
    functional.all_gather_inplace([g, d], h, group); d
    native.wait_tensor(native.all_reduce_(g, "sum", name))
    native.all_reduce_(g, "sum", name); native.wait_tensor(g)
    native.wait_tensor(native.all_reduce_coalesced_([g, d, h], "sum", name)[0]); [native.wait_tensor(t) for t in (d, h)]
    native.wait_tensor(native.broadcast_(g, 1, name))
    native.wait_tensor(native.all_gather_into_tensor_out(half, 2, name, out=g))
    native.wait_tensor(native.all_gather_into_tensor_out(g, 2, name, out=both)); both
    native.wait_tensor(native.reduce_scatter_tensor_out(both, "sum", 2, name, out=g))
    native.wait_tensor(native.reduce_scatter_tensor_out(g, "sum", 2, name, out=half)); half
    native.wait_tensor(native.irecv(g, 0, 0, name) if rank else native.isend(h, 1, 0, name))
    native.wait_tensor(native.irecv(d, 0, 0, name) if rank else native.isend(g, 1, 0, name)); d
    [native.wait_tensor(t) for t in native.batch_p2p_ops(["isend", "irecv"], [other, other], [0, 0], [g, h], name)]
    native.wait_tensor(torch.ops._c10d_functional_autograd.all_gather_into_tensor(g, 2, name))
    native.wait_tensor(torch.ops._c10d_functional_autograd.reduce_scatter_tensor(g, "sum", 2, name))
    native.wait_tensor(torch.ops._c10d_functional_autograd.all_to_all_single(g, [4, 4], [4, 4], name))

    through.all_reduce(g)
    through.broadcast(g, 0)
    through.reduce(g, 1)
    through.gather(g, 0)
    through.all_gather(g)
    through._all_gather_base(both, g), both
    through._all_gather_base(g, half)
    through.reduce_scatter(g, [d, e])
    through.reduce_scatter(g, [h, d])
    through.all_to_all([g, h], [d, e])
    through.all_to_all_single(d, g), d
    through.all_to_all_single(g, d)
    x = g.clone().requires_grad_(); through.all_reduce(x).sum().backward(); x.grad

    dtensor.DTensor.from_local(g, mesh, [dtensor.Partial()]).full_tensor()
    dtensor.DTensor.from_local(g, mesh, [dtensor.Shard(0)]).full_tensor()
    dtensor.DTensor.from_local(g, mesh, [dtensor.Shard(0)]).mul_(2).to_local()
    dtensor.DTensor.from_local(g, mesh, run_check=True).to_local()
    dtensor.distribute_tensor(g, mesh, [dtensor.Shard(0)]).to_local()
    dtensor.distribute_tensor(g, mesh, [dtensor.Replicate()]).to_local()

    averaging.average_parameters(model.parameters(), group)
    averagers.PeriodicModelAverager(period=1).average_parameters(model.parameters()); backward(4)
    hierarchical_model_averager.HierarchicalModelAverager(collections.OrderedDict([(1, 2)])).average_parameters(model.parameters())
    PostLocalSGDOptimizer(opt, averagers.PeriodicModelAverager(period=1)).step()
    o = PostLocalSGDOptimizer(opt, averagers.PeriodicModelAverager(period=2)); o.step(); o.zero_grad(); backward(4 + rank); o.step(); o.param_groups[0]["lr"]
    ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5).step()
    ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5, parameters_as_bucket_view=True).step()
    o = ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5); o.zero_grad(); backward(4); o.step(); backward(5); o.step()
    o = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.5); o.step(); backward(4 + rank); o.step()
    [dist.all_reduce(x.grad) for x in model.parameters()]; o = ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5, momentum=0.5); o.step(); o.consolidate_state_dict(); o.state_dict()["state"] if rank == 0 else None
""")  # noqa: E501

# The same but for a rounding: a norm is not summed up in torch's order.
ROUNDED = lines("""
    n = nn.utils.get_total_norm([g, h, v]); dist.all_reduce(n); nn.utils.clip_grads_with_norm_([p, q, b], 1.0, n); n
    n = g.norm().square(); dist.all_reduce(n); g.mul_(1 / (1 + n)); n
    n = torch.stack(torch._foreach_norm([g, h])); dist.all_reduce(n, op=dist.ReduceOp.MAX); n
    dist.all_reduce(g); nn.utils.clip_grad_norm_([p, q, b], 1.0)
    nn.utils.clip_grad_norm_([p, q], 1.0); dist.all_reduce(g)
    [dist.all_reduce(x.grad) for x in model.parameters()]; ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.5).step()
""")  # noqa: E501
