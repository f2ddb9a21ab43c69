"""What a script of Node.js or Ruby has from its start: programs that each show one such thing."""

# ruff: noqa: E501 (programs of other languages, each on a line)

from __future__ import annotations

NODE = {
    "arguments": "console.log(process.argv, process.argv0, process.execArgv, process.execPath, process.title);",
    "the main module": """
        console.log(__filename, __dirname, require.main === module, process.mainModule === module);
        console.log(module.id, module.parent, module.children, module.paths, module.filename, module.loaded);
        console.log(Object.keys(require.cache), Object.keys(module.constructor._pathCache), process._preload_modules);
        console.log(module.constructor.runMain, Object.getOwnPropertyDescriptor(module.constructor, 'runMain'));
        console.log(this === module.exports, Object.keys(globalThis), arguments.length);
    """,
    "imports of a neighbour": """
        console.log(require('./neighbour'), require('./neighbour.json'), Object.keys(require.cache));
        import('./neighbour.mjs').then((found) => console.log(found.default));
    """,
    "a module that is not there": "require('./nowhere');",
    "an uncaught exception": """
        function inner() { throw new TypeError('deep', { cause: new Error('below') }); }
        (function outer() { inner(); })();
    """,
    "a stack": "console.log(new Error('here').stack); setImmediate(() => console.log(new Error('later').stack));",
    "a rejection that nobody handles": "Promise.reject(new RangeError('refused'));",
    "a syntax error": "let broken = ;",
    "an exit code": "process.exitCode = 3; console.log('set');",
    "an exit": "process.on('exit', (code) => console.log('left', code)); process.exit(7);",
    "events at the end": """
        process.on('beforeExit', () => console.log('before'));
        process.on('exit', (code) => console.log('exit', code));
    """,
    "a signal that kills": "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 5000);",
    "an abort": "process.kill(process.pid, 'SIGSEGV'); setTimeout(() => {}, 5000);",
    "signal handlers": """
        process.on('SIGUSR2', (name) => { console.log(name); clearInterval(kept); });
        const kept = setInterval(() => {}, 1000);
        process.kill(process.pid, 'SIGUSR2');
    """,
    "standard input": "console.log(JSON.stringify(require('fs').readFileSync(0, 'utf8')));",
    "standard input as it comes": """
        process.stdin.setEncoding('utf8');
        process.stdin.on('data', (text) => console.log(JSON.stringify(text))).on('end', () => console.log('end'));
    """,
    "streams": """
        for (const stream of [process.stdin, process.stdout, process.stderr])
            console.log(stream.constructor.name, stream._type, stream.fd, stream.isTTY, stream.writableHighWaterMark);
        process.stdout.write('x'.repeat(300000) + '\\n');
    """,
    "a child's streams": """
        const { spawnSync } = require('child_process');
        const read = (fd) => require('fs').readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').split('\\n')[1];
        console.log(read(0), read(2));
        spawnSync('sh', ['-c', 'grep flags /proc/self/fdinfo/1; ls /proc/self/fd | wc -l'], { stdio: 'inherit' });
    """,
    "threads": """
        const { Worker, isMainThread, threadId } = require('worker_threads');
        console.log(isMainThread, threadId);
        const look = `
            const { isMainThread, workerData } = require('worker_threads');
            console.log(isMainThread, process.argv, process.execArgv, Object.keys(require.cache), workerData);
            console.log(process._preload_modules, process.env.MODE, require('path').basename(process.cwd()));
        `;
        new Worker(look, { eval: true, workerData: 5 }).on('exit', (code) => console.log('exit', code));
    """,
    "forks": """
        const { fork } = require('child_process');
        if (process.argv[2] === 'child') {
            process.send([process.argv.slice(1), process.execArgv, process.env.NODE_OPTIONS, require.main.id]);
        } else {
            fork(__filename, ['child']).on('message', (said) => console.log(said)).on('exit', console.log);
        }
    """,
    "the process": """
        console.log(process.cwd(), process.umask().toString(8), process.uptime() > 0, process.connected);
        console.log(process.getuid(), process.ppid > 0, process.report.directory, process.allowedNodeEnvironmentFlags.size);
    """,
    "the clock": """
        console.log(Math.abs(performance.timeOrigin + performance.now() - Date.now()) < 1000);
        console.log(Object.keys(performance), Object.keys(Performance.prototype));
    """,
    "the environment": """
        console.log(process.env, require('child_process').execSync('env', { encoding: 'utf8' }));
    """,
    "the time zone": "console.log(new Date(0).getHours(), Intl.DateTimeFormat().resolvedOptions().locale);",
    "what ps shows": """
        console.log(require('child_process').execSync(`ps -o args= -p ${process.pid}`, { encoding: 'utf8' }));
    """,
    "warnings": "process.emitWarning('careful'); new Buffer(1);",
    "contexts": """
        const vm = require('vm');
        const object = { x: 2, seen: 0 };
        console.log(vm.createContext(object) === object, vm.isContext(object), Object.keys(object));
        console.log(vm.runInContext('seen = x * 2', object), vm.runInNewContext('x + 1', { x: 5 }), object);
        console.log(new vm.Script('y = 1').runInNewContext(), vm.runInNewContext('typeof Math.random()'));
        for (const wrong of [() => vm.createContext(5), () => vm.runInNewContext('1', 5), () => vm.runInNewContext('1', {}, 5)])
            try { wrong(); console.log('taken'); } catch (error) { console.log(error.code, error.message); }
        console.log(vm.createContext.name, vm.createContext.length, vm.runInNewContext.length);
    """,
    "a Math of a context's own": """
        let calls = 0;
        const object = { Math: { random() { calls++; return 4; } } };
        console.log(require('vm').runInNewContext('Math.random()', object), calls);
    """,
    "recursion": "let n = 0; (function deeper() { n++; try { deeper(); } catch { } })(); console.log(n > 5000);",
    "order of things": """
        setTimeout(() => console.log('timeout'), 0); setImmediate(() => console.log('immediate'));
        process.nextTick(() => console.log('tick')); Promise.resolve().then(() => console.log('promise'));
        console.log('first');
    """,
    "secrets": """
        const crypto = require('crypto');
        console.log(crypto.randomUUID().length, crypto.createHash('sha256').update('x').digest('hex'));
    """,
}

NODE_MODULES = {
    "a module": """
        import fs from 'fs';
        import neighbour from './neighbour.mjs';
        console.log(import.meta.url, process.argv, neighbour, typeof require, await Promise.resolve(5));
    """,
    "an exception in a module": "throw new Error('in a module');",
    "a module without an end": "await new Promise(() => {});",
}

RUBY = {
    "arguments": "p ARGV, $0, $PROGRAM_NAME, __FILE__, __dir__, __method__, Process.argv0, $*",
    "the main object": """
        x = 1
        p self, self.class, TOPLEVEL_BINDING.local_variables, binding.local_variables, __FILE__ == $0, caller
        p singleton_methods, method(:require).owner, private_methods(false).sort.first(5), Object.new.respond_to?(:f)
        def f = 1
        p Object.private_method_defined?(:f), global_variables.size, $-w, $-v, $VERBOSE, $DEBUG
    """,
    "loaded features": "p $LOADED_FEATURES.map { |path| File.basename(path) }, $LOAD_PATH",
    "imports of a neighbour": "require_relative 'neighbour'; p NAME; load File.join(__dir__, 'neighbour.rb')",
    "templates see local variables": "require 'erb'; x = 5; puts ERB.new('x is <%= x %>').result",
    "an uncaught exception": """
        def inner = raise(ArgumentError, 'deep')
        def outer
          inner
        rescue ArgumentError
          raise KeyError, 'outer'
        end
        outer
    """,
    "a mistake is pointed at": "def f(value) = value.upcase.foo\nf(nil)",
    "a name that was misspelt": "[1, 2].frist",
    "a backtrace": "def f = raise('x')\nbegin\n  f\nrescue => error\n  puts error.backtrace, error.full_message(highlight: false)\nend",
    "callers": "def f = caller_locations.map { |each| [each.path, each.lineno, each.label, each.absolute_path] }\np f",
    "a syntax error": "def broken(\n",
    "an exit code": "exit 3",
    "an exit with words": "abort 'gone wrong'",
    "an exit without an end": "at_exit { puts 'never' }; $stdout.write('kept'); $stdout.flush; exit! 5",
    "what happens at the end": """
        at_exit { puts "last #{$!.inspect}" }
        at_exit { puts 'first' }
        END { puts 'END' }
        BEGIN { puts 'BEGIN' }
        raise 'x'
    """,
    "a return from the script": "puts 'before'\nreturn if true\nputs 'never'",
    "a throw that nobody catches": "throw :ball",
    "a signal that kills": "Process.kill(:TERM, $$); sleep 5",
    "an interrupt": "Process.kill(:INT, $$); sleep 5",
    "signal handlers": "trap(:USR2) { puts 'caught' }; Process.kill(:USR2, $$); sleep 0.2; p trap(:INT, 'DEFAULT'), trap(:CHLD, 'DEFAULT')",
    "standard input": "p $stdin.read, $stdin.fileno, $stdin.tty?, $stdin.external_encoding, ARGF.class",
    "lines of what is named": "ARGV.clear; p gets, ARGF.filename",
    "streams": "[$stdin, $stdout, $stderr].each { |each| p each.sync, each.external_encoding, each.fileno, each.inspect }",
    "data behind the end": "p DATA.read, DATA.path, DATA.lineno, DATA.class\n__END__\nthe data\nof it\n",
    "a first line": "#!/usr/bin/env ruby\np __LINE__, DATA.lineno\n__END__\nx\n",
    "options in the first line": "#!/usr/bin/ruby -w\np $VERBOSE\n",
    "magic comments": "# frozen_string_literal: true\np 'x'.frozen?, __ENCODING__",
    "another encoding": "# encoding: iso-8859-1\np __ENCODING__, 'x'.encoding",
    "an empty script": "",
    "encodings": "p Encoding.default_external, Encoding.default_internal, Encoding.find('locale'), ARGV.map(&:encoding), ENV['MODE'].encoding",
    "threads": "p Thread.main == Thread.current, Thread.list.size, Thread.current.name; Thread.new { sleep 0.05; puts 'last' }.join",
    "an exception in a thread": "Thread.new { raise 'inside' }.join",
    "forks": 'pid = fork { puts "child #{$0}"; exit 4 }; Process.wait(pid); p $?.exitstatus',
    "children": "puts `echo $0 $MODE`; system('ls /proc/self/fd | wc -l'); p $?.class",
    "open descriptors": "p Dir.children('/proc/self/fd').size, ObjectSpace.each_object(IO).reject(&:closed?).map(&:path).compact",
    "the process": "p Dir.pwd, File.umask, Process.pid == Process.getsid, Process.getrlimit(:CORE), Process.uid",
    "what ps shows": "puts `ps -o args= -p #{$$}`",
    "the environment": "p ENV.to_h; puts `env`",
    "a title": "Process.setproctitle('other'); puts `ps -o args= -p #{$$}`; $0 = 'third'; puts `ps -o args= -p #{$$}`, __FILE__",
    "the time zone": "p Time.at(0).hour, Time.at(0).zone",
    "warnings": "warn 'careful'; X = 1; X = 2",
    "recursion": "def f(n) = f(n + 1)\nbegin\n  f(0)\nrescue SystemStackError => error\n  puts error.message\nend",
    "randomness": "p rand.class, Random.new_seed.class, Random.seed.class; srand(5); p rand(1000), [1, 2, 3].shuffle(random: Random.new(1))",
    "gems": "require 'json'; require 'set'; require 'securerandom'; p JSON.generate([1]), SecureRandom.hex(2).size, Gem.path",
    "marshal of main's classes": "class Thing; end\np Marshal.load(Marshal.dump(Thing.new)).class",
}
