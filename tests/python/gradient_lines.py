"""What test_factored_grad.py does to p.grad: lines of Python in the names that factored.Side gives them."""

from factored import lines

# On each line g is p.grad, h that of a second fused weight, v that of a bias; d, e and mask are ordinary tensors.
# Equal bit for bit:
SAME = lines("""
    g.detach()
    g.detach().mul_(2)
    torch.ops.aten.alias(g)
    torch.ops.aten.alias(g).mul_(2)
    g.data
    g.data.mul_(2)
    g.data.view(-1).zero_()
    p.grad.data.data.detach().neg_()
    g.clone()
    g.clone().mul_(2)
    g.clone().view(-1).mul_(2)
    g.clone(memory_format=torch.contiguous_format)
    c = g.clone(); g.mul_(2); c
    copy.copy(g)
    copy.copy(g).mul_(2)
    copy.deepcopy(g)
    copy.deepcopy(g).mul_(2)
    a, b = copy.deepcopy([g, g]); a.mul_(2); b
    copy.deepcopy(model).first.weight.grad
    pickle.loads(pickle.dumps(g))
    pickle.loads(pickle.dumps(g)).mul_(2)
    f = io.BytesIO(); torch.save({"g": g}, f); f.seek(0); torch.load(f, weights_only=True)["g"]

    g.mul_(2)
    g.mul_(0.25).mul_(4).mul_(-1)
    g.mul_(torch.tensor(0.5))
    g.mul_(torch.tensor(0.5, dtype=torch.float64))
    g.mul_(torch.tensor([0.5]))
    g.mul_(d)
    g.mul_(mask)
    g.mul_(g)
    g.mul_(True)
    g.mul_(0)
    g.mul_(0).add_(d)
    g.mul_(float("nan"))
    g.div_(2)
    g.div_(torch.tensor(4.0))
    g.div_(2, rounding_mode="floor")
    g.div_(0)
    g.neg_()
    g.zero_()
    g.zero_().add_(h)
    g.zero_().view(-1)
    g.fill_(3)
    g.fill_(torch.tensor(3.0))
    g.copy_(d)
    g.copy_(h)
    g.copy_(g)
    g.copy_(d[0])
    g.copy_(d.double())
    g.copy_(torch.tensor(1.0))
    g.copy_(g * 2)
    d.copy_(g)
    g.data.copy_(d)

    g.add_(d)
    g.add_(h)
    g.add_(g)
    g.add_(1)
    g.add_(d[0])
    g.add_(d, alpha=-2)
    g.add_(h, alpha=0.5)
    g.add_(h, alpha=0)
    g.add_(h.detach(), alpha=2).add_(h)
    g.mul_(2).add_(h.mul_(0.5), alpha=4)
    g.mul_(0).add_(h)
    g.mul_(0.5).add_(g, alpha=3)
    g.add_(h); h.mul_(2)
    g.add_(h); h.view(-1).mul_(2)
    g.sub_(d)
    g.sub_(h)
    g.sub_(g)
    g.sub_(h, alpha=2)
    g.sub_(1)
    d.add_(g)
    d.add_(g, alpha=-1)
    h.view(-1).add_(g.view(-1))
    g.addcmul_(d, e)
    g.addcmul_(d, g, value=0.5)
    g.lerp_(d, 0.5)
    g.lerp_(h, 0.5)
    d.lerp_(g, 0.5)
    d.addcmul_(g, g, value=0.5)
    p.data.addcdiv_(g, e, value=-0.5)
    p.data.add_(p.grad, alpha=-1)
    p.data.sub_(g)
    p.data.add_(g.sign(), alpha=-0.5)

    g.view(-1)
    g.view(-1).mul_(2)
    g.view(IN, OUT).mul_(2)
    g.reshape(-1).mul_(2)
    g.flatten().mul_(2)
    g.t().mul_(2)
    g.T.mul_(2)
    g.mT
    g.transpose(0, 1)[2].zero_()
    g[0] = 0
    g[0].mul_(2)
    g[1:3].add_(1)
    g[:, 2] = d[:, 2]
    g[mask] = 5
    g[..., None].mul_(2)
    g[torch.tensor([0, 2])] = 1
    g += d
    g *= 2
    g /= 2
    g -= h
    g[2] += 3
    g.diagonal().fill_(4)
    g.narrow(0, 1, 2).zero_()
    g.select(0, 1).neg_()
    g.as_strided((3,), (2,)).zero_()
    g.unsqueeze(0).mul_(2)
    g.expand(2, OUT, IN)
    g.unfold(0, 2, 2).mul_(2)
    [part.mul_(k) for k, part in enumerate(g.split(3))]
    [part.mul_(k) for k, part in enumerate(g.chunk(2, dim=1))]
    [row.mul_(k) for k, row in enumerate(g)]
    [row.mul_(k) for k, row in enumerate(g.unbind(1))]
    g.index_fill_(0, torch.tensor([1]), 7)
    g.index_copy_(0, torch.tensor([1]), d[:1])
    g.index_add_(0, torch.tensor([1, 1]), d[:2])
    g.index_put_((torch.tensor([1]),), d[1], accumulate=True)
    g.scatter_(0, torch.zeros(1, 9, dtype=torch.long), d[:1])
    g.masked_fill_(mask, 9)
    g.masked_scatter_(mask, d)
    g.tril_()
    g.fill_diagonal_(2)
    torch.where(mask, g, d)
    torch.cat([g, d])
    torch.stack([h, g, d])

    g.clamp_(-1, 1)
    g.clamp_(min=d, max=d + 1)
    g.clamp_min_(0)
    g.clip_(-0.5, 0.5)
    g.abs_()
    g.sign_()
    g.round_()
    g.relu_()
    g.nan_to_num_()
    g.square_()
    g.pow_(2)
    g.remainder_(2)
    g.maximum(d)
    g.bernoulli_(0.5)
    nn.functional.dropout(g, 0.5)
    nn.functional.dropout(g, 0.5, inplace=True)
    nn.utils.clip_grad_value_(model.parameters(), 1.5)
    nn.utils.clip_grad_value_(model.parameters(), 1.5, foreach=False)

    g * 2
    2 * g
    g * 2.5
    (g * 2).mul_(2)
    g * mask
    g * d
    g * torch.tensor(2.0)
    g * 0
    g / 2
    2 / (g.abs() + 1)
    -g
    g + g
    g + h
    g + d
    d + g
    g - h
    g ** 2
    g @ d.t()
    d.t() @ g
    g == d
    g > 0
    g.eq(g)
    torch.equal(g, g)
    torch.allclose(g, g)
    bool((g == g).all())
    (g * 2).add_(g)

    g.norm(1)
    g.norm(float("inf"))
    g.norm(0)
    g.abs().max()
    g.sum()
    g.sum(0)
    g.amax(dim=1, keepdim=True)
    g.numel() and g.abs().argmax()
    g.count_nonzero()
    torch.isfinite(g)
    torch.isfinite(g).all()
    torch.isnan(g).any()
    g.float()
    g.float() is g
    g.to(torch.float64)
    g.to(torch.float64).mul_(2)
    g.bfloat16()
    g.half()
    g.to("cpu") is g
    g.cpu()
    g.cpu().mul_(2)
    g.contiguous() is g
    g.type(torch.float64)
    g.to(torch.float32, copy=True).mul_(2)
    g.mul_(2) is g
    g.add_(d) is g
    g.clamp_(0, 1) is g
    g.view(-1).tolist()
    g.tolist()
    g.numpy()
    g.numpy()[1] = 3
    g.numpy(force=True)
    g.detach().cpu().numpy()[2] = 1
    np.asarray(g)
    np.asarray(g)[0] = 7
    np.array(g)[0] = 7
    np.sum(g.numpy() * 2, axis=0)
    np.from_dlpack(g)
    torch.from_dlpack(g)
    torch.from_dlpack(g).mul_(2)
    torch.utils.dlpack.from_dlpack(g).zero_()
    d.numpy()[:] = np.asarray(g); d
    g[0, 0].item()
    float(g[0, 0])
    [len(g), g.shape, g.size(1), g.dim(), g.numel(), g.dtype, str(g.device), g.stride(), g.is_contiguous(), g.nbytes]
    [g.is_leaf, g.requires_grad, g.grad_fn, g.is_sparse, g.layout == torch.strided, g.element_size(), g.ndim]
    g.requires_grad_(False)
    g.requires_grad_(False) is g
    [isinstance(g, torch.Tensor), torch.is_tensor(g), g.is_floating_point(), g is p.grad, hash(g) == hash(p.grad)]
    [g in {g}, g in {h: 1}, g in [h, g] if g is h else True, {p.grad: 1}[g]]
    torch.tensor(0.5) in g

    torch.zeros_like(g)
    torch.ones_like(g, dtype=torch.float64)
    torch.full_like(g, 3)
    torch.rand_like(g)
    torch.randn_like(g)
    torch.randint_like(g, 5)
    torch.empty_like(g).copy_(g)
    torch.empty_like(g).stride()
    torch.zeros_like(g, memory_format=torch.preserve_format).is_contiguous()
    torch.zeros_like(g).add_(1)
    g.new_zeros(3)
    g.new_ones(2, 2)
    g.new_full((2,), 5)
    g.new_tensor([1, 2])
    g.new_empty((2, 3)).shape
    g.new_empty_strided((2, 3), (3, 1)).stride()

    torch._foreach_norm([g, d, h], 1)
    torch._foreach_norm([d, v], 2)
    torch._foreach_mul_([g, d, h], 2)
    torch._foreach_mul_([d, g], torch.tensor(0.5)); d
    torch._foreach_mul_([g, h], [2.0, 0.5])
    torch._foreach_mul_([g, h], [d, e])
    torch._foreach_mul_([g, v], torch.tensor(2.0))
    torch._foreach_mul([g, d], 2)
    torch._foreach_mul([g, d], 2)[0].mul_(2)
    torch._foreach_div_([d, g], 2); d
    torch._foreach_div_([g, h], [2.0, 4.0])
    torch._foreach_div_([g, d], [d, e])
    torch._foreach_div_([g, v], torch.tensor(2.0))
    torch._foreach_zero_([g, v, h])
    torch._foreach_zero_([v, h])
    torch._foreach_add_([g, d], 1); d
    torch._foreach_add_([g, h], [d, e])
    torch._foreach_add_([g, d], [h, g]); d
    torch._foreach_add_([d], [g], alpha=-1); d
    torch._foreach_add_([g, h], [h, g], alpha=2)
    torch._foreach_add_([p.data], [g], alpha=-1)
    torch._foreach_add([g], [h], alpha=2)
    torch._foreach_sub_([g, h], [d, d], alpha=2)
    torch._foreach_neg_([g, h])
    torch._foreach_neg([g, d])
    torch._foreach_abs_([g, v])
    torch._foreach_clamp_min_([g, h], -1.0)
    torch._foreach_clamp_max_([g, v], 1.0)
    torch._foreach_clamp_max_([g], [d])
    torch._foreach_maximum_([g, h], [d, e])
    torch._foreach_addcmul_([g], [d], [e], 0.5)
    torch._foreach_addcdiv_([p.data], [g], [e], -0.5)
    torch._foreach_lerp_([d, e], [g, h], 0.5); [d, e]
    torch._foreach_lerp_([g], [d], 0.25)
    torch._foreach_copy_([g, h], [d, g])
    torch._foreach_copy_([d, e], [g, h]); [d, e]
    torch._foreach_sign_([g]); torch._foreach_max([g, d])
    f = torch.zeros(()); torch._amp_foreach_non_finite_check_and_unscale_([g, v, h], f, torch.tensor(0.25)); f
    f = torch.zeros(()); torch._amp_foreach_non_finite_check_and_unscale_([g.detach()], f, torch.tensor(1.0)); f
    h.fill_(float("inf")); f = torch.zeros(1); torch._amp_foreach_non_finite_check_and_unscale_([g, h], f, torch.ones(1)); f
    v[0] = torch.nan; f = torch.zeros(1); torch._amp_foreach_non_finite_check_and_unscale_([g, v], f, torch.ones(1)); f
    g.mul_(torch.nan); f = torch.zeros(1); torch._amp_foreach_non_finite_check_and_unscale_([g, v], f, torch.ones(1)); f

    torch.add(d, e, out=g)
    torch.mul(g, 2, out=g)
    torch.mul(g, h, out=g)
    torch.add(g, h, out=d)
    torch.mm(d, d.t() @ e, out=g)
    torch.neg(g, out=g)
    torch.clamp(g, 0, 1, out=g) is g
    torch.where(mask, g, d, out=g)
    torch.cat([d[:4], g[4:] * 1], out=g)
    torch.max(d, dim=1, out=(g[:, 0], torch.empty(8, dtype=torch.long)))

    g.data = d
    g.data = d; g.mul_(2); d
    g.data = d; d.mul_(2); p.grad
    g.data = d; [type(g), g is p.grad]
    g.data = d; g.untyped_storage().data_ptr() == d.untyped_storage().data_ptr()
    g.data = d[0]; [g.shape, p.grad]; p.grad = d
    g.data = d.double(); p.grad.dtype; p.grad = d
    g.data = h; h.mul_(2); g
    g.data = h.clone()
    g.data = h.detach(); g.zero_(); h
    g.data = g
    g.data = g.detach(); g.mul_(2)
    g.data.data = d; g
    c = g.detach(); g.data = d; c
    c = g.detach(); g.data = d; c.mul_(2); g
    c = g.view(-1); g.data = d; c.mul_(2); g
    held.append(g.clone()); g.data = d; held
    g.data = d; copy.deepcopy(g).mul_(2); g
    copy.deepcopy(g).data = d
    g.data = d; opt.zero_grad(set_to_none=False); g
    g.data = d; opt.zero_grad(); backward(4); p.grad
    g.data = d; backward(4); g
    g.data = d; p.grad = g * 2; g
    g.data = d; g.data = e; g
    g.share_memory_()
    g.share_memory_() is g
    g.share_memory_().mul_(2); [g, g.is_shared()]
    c = g.view(-1); g.share_memory_().mul_(2); c
    g.view(-1).share_memory_()
    g.view(-1).share_memory_().mul_(2); g.norm(float("inf"))
    c = g.view(-1).share_memory_(); p.grad = g.detach(); backward(4); c
    [g.is_shared(), g.is_pinned(), g.untyped_storage().is_shared(), g.untyped_storage().nbytes(), len(g.storage())]
    nn.utils.vector_to_parameters(torch.ones(72), [g])
    model.cpu(); g
    model.to("cpu", dtype=g.dtype); g is p.grad
    model.float() if g.dtype == torch.float32 else None; g is p.grad
    model._apply(lambda t: t.t().contiguous().t() if t.dim() == 2 else t.clone())
    model._apply(lambda t: 2 * t); g
    model._apply(torch.zeros_like); g
    model.share_memory(); [t.grad.is_shared() for t in model.parameters()]
    model.to_empty(device="cpu"); [t.zero_() for t in [p.data, q.data, b.data, p.grad, q.grad, b.grad]]
    model.double().float(); g
    model.double(); [t.grad for t in model.parameters()] + [p.data]; model.float()
    model.half().float(); g
    model.bfloat16().float(); backward(4); g
    model.double().float(); opt.zero_grad(); backward(4); opt.step(); backward(5); p.grad
    copy.deepcopy(model).half().first.weight.grad
    c = copy.deepcopy(model.double()); model.float(); c.first.weight.grad
    torch.isnan(g)
    torch.isnan(g).any()
    torch.isnan(g).view(-1).logical_not_().all()
    torch.any(torch.isnan(g))
    g.isnan().any().item()
    g.isnan().sum()
    torch.isinf(g).any() or torch.isnan(g).any()
    c = torch.isnan(g); c |= torch.isinf(g); c
    torch.isfinite(g)
    torch.isfinite(g).all()
    not torch.isfinite(g).all()
    g.isfinite().sum().item() == g.numel()
    (~torch.isfinite(g)).stride()
    torch.isposinf(g) + torch.isneginf(g)
    c = torch.isfinite(g); g.mul_(torch.nan); c
    g.mul_(torch.nan); torch.isnan(g).all()
    g.mul_(torch.inf); [torch.isnan(g).any(), torch.isinf(g).sum(), torch.isposinf(g), torch.isfinite(g)]
    g[1, 2] = torch.inf; [torch.isinf(g), g.isfinite().all()]
    c = torch.isnan(g); opt.zero_grad(set_to_none=False); c
    torch.isnan(g.detach()).any(); backward(4); torch.isfinite(p.grad).all()

    opt.zero_grad()
    opt.zero_grad(set_to_none=True)
    opt.zero_grad(set_to_none=False)
    model.zero_grad()
    model.zero_grad(set_to_none=False)
    opt.zero_grad(set_to_none=False); g
    opt.zero_grad(); g
    opt.zero_grad(); backward(4); g
    opt.zero_grad(set_to_none=False); backward(4); g
    held.append(g.view(-1)); opt.zero_grad(); backward(4); held
    held.append(g.view(-1)); opt.zero_grad(set_to_none=False); backward(4); held
    held.append(g.detach()); backward(4); held
    held.append(g.clone()); backward(4); held
    p.grad = None
    p.grad = None; g
    p.grad = None; g.mul_(2)
    p.grad = p.grad
    p.grad = p.grad.clone(); g
    p.grad = p.grad.clone(); g.mul_(2); p.grad
    p.grad = p.grad.clone(); p.grad.mul_(2); g
    p.grad = p.grad.detach(); g.mul_(2)
    p.grad = p.grad * 2; g
    p.grad = p.grad * 2; backward(4); g
    p.grad = g * mask
    p.grad = d
    p.grad = d; g
    p.grad = d.clone(); backward(4); p.grad.mul_(2)
    p.grad = h
    p.grad = h; p.grad.mul_(2); q.grad
    p.grad, q.grad = q.grad, p.grad
    p.grad, q.grad = q.grad, p.grad; backward(4)
    p.grad *= 2
    p.grad += q.grad
    p.grad.data = p.grad.data if False else p.grad; g
    del p.grad
    p.grad.zero_(); p.grad = None; backward(5)

    hook = p.register_hook(lambda t: t * 2); backward(4); hook.remove(); backward(5); g
    hook = p.register_hook(lambda t: held.append(t.clone()) or 2 * t); backward(4); hook.remove(); held
    p.register_post_accumulate_grad_hook(lambda w: held.append(w.grad.clone())); backward(4); held
    hook = p.register_post_accumulate_grad_hook(lambda w: (w.grad.mul_(2), None)[1]); backward(4); hook.remove(); backward(5)
    p.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None)); backward(4)
    held.append(g.view(-1)); p.register_hook(lambda t: 2 * t); backward(4); held

    torch.optim.SGD([p, q, b], lr=0.5, foreach=False).step()
    torch.optim.SGD([p, q, b], lr=0.5, foreach=True).step()
    torch.optim.SGD([p, q, b], lr=0.5, fused=True).step()
    torch.optim.SGD([p, q, b], lr=0.5, momentum=0.5, weight_decay=0.5, foreach=True).step()
    opt.step(); g
    opt.step(); g.mul_(2)
    opt.step(); backward(4); opt.step()
    nn.utils.parameters_to_vector([g, v])
    torch._dynamo.is_compiling()
    torch.linalg.matrix_rank(g.double() + 5 * torch.eye(8, 9))
    torch.func.functional_call(nn.Linear(9, 8), {"weight": g}, torch.ones(1, 9)).shape
    nn.Parameter(g).data.mul_(2)
    torch.as_tensor(g) is g
    torch.utils.swap_tensors(d, e); d
""")  # noqa: E501

# The same but for a rounding or two of what torch rounds elsewhere: lines with their ulps.
NEAR = {
    **dict.fromkeys(
        lines("""
    g.div_(3)
    g.div_(e)
    g.addcdiv_(d, e)
    g.uniform_()
    g.normal_()
    torch.normal(0.0, 1.0, (OUT, IN), out=g)
    g.div_(torch.tensor(7.0))
    g / 3
    torch._foreach_div_([g, d], 3); d
    g.mul_(0.3).mul_(0.7)
    g.mul_(1 / 3).add_(h, alpha=0.1)
    p.data.add_(g, alpha=-0.1)
    p.data.addcdiv_(g, e.abs().sqrt(), value=-0.1)
    f = torch.zeros(1); torch._amp_foreach_non_finite_check_and_unscale_([g, v, h], f, torch.tensor(1 / 3)); f
        """),
        4,
    ),
    **dict.fromkeys(
        lines("""
    g.norm()
    g.norm(2)
    g.norm(3)
    g.norm(0.5)
    g.norm(2, dim=1)
    g.norm(2, keepdim=True)
    g.norm(dtype=torch.float64)
    torch.norm(g)
    torch.linalg.norm(g)
    torch.linalg.vector_norm(g)
    torch.linalg.vector_norm(g, dim=(0, 1), keepdim=True)
    torch.linalg.vector_norm(g, float("-inf"))
    torch.linalg.matrix_norm(g)
    g.double().norm()
    (g * 2).norm()
    torch._foreach_norm([g, d, h])
    torch._foreach_norm([d, g], 2)
    torch._foreach_norm([g, h], 1.5)
    torch._foreach_norm([g, d], float("inf"))
    torch._foreach_norm([g, h], 2, dtype=torch.float64)
    g.mean()
    g.std()
    g.var(0)
    g.softmax(0)
    g.exp_()
    g.sigmoid_()
    g.mul_(torch.inf).norm()
    nn.utils.get_total_norm([g, v, h])
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
    nn.utils.clip_grad_norm_(model.parameters(), 1e4)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=1)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=float("inf"))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=1.5)
    nn.utils.clip_grad_norm_(p, 1.0)
    nn.utils.clip_grad_norm_([p, q], 0.5); g
    nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, torch.tensor(4.0))
    held.append(g.view(-1)); nn.utils.clip_grad_norm_(model.parameters(), 1.0); held
    held.append(g.detach()); nn.utils.clip_grad_norm_(model.parameters(), 1.0); held
    backward(4); nn.utils.clip_grad_norm_(model.parameters(), 1.0); backward(5); g
    torch.optim.AdamW([p, q, b], lr=0.5, foreach=True).step()
    torch.optim.AdamW([p, q, b], lr=0.5, foreach=False).step()
    torch.optim.AdamW([p, q, b], lr=0.5, fused=True).step()
        """),
        64,
    ),
}

# What would reach for memory that is not there, or make a gradient of another shape.
REFUSED = lines("""
    g.data_ptr()
    getattr(g, "const_data_ptr", g.data_ptr)()
    g.untyped_storage().data_ptr()
    g.untyped_storage()[0]
    g.untyped_storage()[0] = 1
    g.untyped_storage().fill_(0)
    g.untyped_storage().resize_(0)
    g.untyped_storage().clone()
    g.untyped_storage().share_memory_()
    bytes(g.untyped_storage())
    pickle.dumps(g.untyped_storage())
    g.storage().tolist()
    torch.empty(0).set_(g.untyped_storage(), 0, (OUT, IN), (IN, 1)).sum()
    torch._C._to_dlpack(g)
    g.resize_(3)
    g.resize_as_(d.view(-1))
    g.set_(d)
    g.set_(d.untyped_storage())
    g.t_()
    g.transpose_(0, 1)
    g.unsqueeze_(0)
    g.squeeze_()
    g.swapaxes_(0, 1)
    g.data = d.to_sparse()
    torch.add(d.view(-1), 1, out=g)
    torch.cat([d, d], out=g)
    g.copy_(torch.ones(3))
    g.add_(torch.ones(3))
    g.mul_(torch.ones(3))
""")
